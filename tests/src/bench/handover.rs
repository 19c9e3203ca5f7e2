//! How long an idle tree takes from one side to the other: both on this machine, the server on loopback.
//!
//! # Promises
//!
//! Idle means at rest, by the server's word: before each handover the holder has written nothing for more than a second, and has
//! said so. A handover counts as ended when the other side has *written*: the gate there is open, its caches are dropped.

use std::time::Duration;

use anyhow::Context;

use super::disk::Disk;
use super::places::TREE;
use super::stats::{Samples, Unit};
use super::table::Table;
use super::{Ground, Settings, say};
use crate::hosts::{Server, Side, Timer, holds_within};

/// The goal: half of the handovers are quicker.
const GOAL: Duration = Duration::from_millis(50);
/// How long a holder may take until it is at rest.
const REST: Duration = Duration::from_secs(30);
/// Files that both sides' kernels know: what is to be dropped at a handover.
const FILES: usize = 500;

/// One way for the lease to go over.
struct Way {
    name: &'static str,
    seconds: Samples,
}

/// Measures, and returns the table.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let (_server, sides) = pair(settings, &ground.disk, ground)?;
    let mut ways = ["`treelease handoff TREE --to SIDE`", "`treelease run --ask -- true` on the other side"]
        .map(|name| Way { name, seconds: Samples::default() });
    let mut commands = Samples::default();
    let times = settings.size(20, 2);
    let mut holder = 0;
    for n in 0..=times {
        for (at, way) in ways.iter_mut().enumerate() {
            let (from, to) = (&sides[holder], &sides[1 - holder]);
            look_at(to)?;
            rests(from)?;
            let timer = Timer::start();
            match at {
                0 => from.ok(&["handoff", TREE, "--to", to.name()]),
                _ => to.ok(&["run", "--tree", TREE, "--ask", "--", "true"]),
            };
            let said = timer.elapsed().as_secs_f64();
            std::fs::write(to.at(TREE).join("written"), format!("{n}")).context("the new holder may write")?;
            let took = timer.elapsed().as_secs_f64();
            // The first ones warm up.
            if n > 0 {
                way.seconds.push(took);
                if at == 0 {
                    commands.push(said);
                }
            }
            holder = 1 - holder;
        }
    }
    say(format!("handover: {times} times each"));
    for side in &sides {
        side.run(&["down"]);
    }
    let mut table =
        Table::new(["an idle tree goes over", "until the other side has written, of so many", "95 % are below", "goal"]);
    for way in &ways {
        let word = if way.seconds.median() <= GOAL.as_secs_f64() { "met" } else { "**behind**" };
        table.row([
            way.name.to_owned(),
            format!("{}, {times}", way.seconds.show(Unit::Time)),
            Unit::Time.show(way.seconds.percentile(95.0)),
            format!("{} ms: {word}", GOAL.as_millis()),
        ]);
    }
    table.row([
        "of which until `handoff` has ended".to_owned(),
        format!("{}, {times}", commands.show(Unit::Time)),
        Unit::Time.show(commands.percentile(95.0)),
        String::new(),
    ]);
    Ok(table.to_string())
}

/// Two sides over one directory with some files; the first one holds the tree.
fn pair(settings: &Settings, disk: &Disk, ground: &Ground) -> anyhow::Result<(Server, [Side; 2])> {
    let server = Server::start(disk.directory("server-handover")?);
    let lower = disk.directory("lower-handover")?;
    for n in 0..settings.size(FILES, 20) {
        std::fs::write(lower.join(format!("file-{n}")), "some words")?;
    }
    let sides = ["giver", "taker"].map(|name| ground.world.side(name, &server).ttl("15s"));
    let root = lower.to_str().context("our own path")?;
    sides[0].ok(&["tree", "add", TREE, "--root", root, "fence=none", "min_hold=0s"]);
    for side in &sides {
        side.mount(TREE, &lower);
    }
    std::fs::write(sides[0].at(TREE).join("written"), "")?;
    Ok((server, sides))
}

/// A side that reads has looked at what is there.
fn look_at(side: &Side) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(side.at(TREE))? {
        let entry = entry?;
        entry.metadata().and_then(|_| std::fs::read(entry.path()))?;
    }
    Ok(())
}

fn rests(side: &Side) -> anyhow::Result<()> {
    let at_rest = || side.tree_status(TREE)["at_rest"] == true;
    anyhow::ensure!(holds_within(REST, at_rest), "the holder does not come to rest");
    Ok(())
}
