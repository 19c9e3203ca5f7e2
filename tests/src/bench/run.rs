//! What `treelease run` adds to a command, with the daemon up: beside the command alone, and beside `etcdctl lock`.

use std::process::{Command, Stdio};

use anyhow::bail;

use super::places::{Guarded, TREE};
use super::server::etcd::Etcd;
use super::stats::{Samples, Unit};
use super::table::Table;
use super::{Ground, Rival, Settings, say};
use crate::hosts::{Side, Timer};

/// One way to run `true`.
struct Way<'a> {
    name: &'static str,
    command: Box<dyn Fn() -> Command + 'a>,
    before: Box<dyn Fn() + 'a>,
    seconds: Samples,
}

/// Measures, and returns the table.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let guarded = Guarded::start(ground, "run")?;
    let side = &guarded.side;
    let etcd = settings.beside(Rival::Etcd).then(|| Etcd::start(ground, "run-etcd", 1)).transpose()?;
    let mut ways = ways(side, etcd.as_ref());
    let times = settings.size(50, 3);
    for n in 0..=times {
        let from = n % ways.len();
        ways.rotate_left(from);
        for way in &mut ways {
            (way.before)();
            let mut command = (way.command)();
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let timer = Timer::start();
            let status = command.status()?;
            let took = timer.elapsed().as_secs_f64();
            if !status.success() {
                bail!("{}: {status}", way.name);
            }
            // The first one warms up.
            if n > 0 {
                way.seconds.push(took);
            }
        }
        ways.rotate_right(from);
    }
    say(format!("run: {times} times each"));
    let mut table = Table::new(["command", "time, of so many", "95 % are below", "more than `true` alone"]);
    let alone = ways[0].seconds.clone();
    for way in &ways {
        let more = Samples::of([way.seconds.median() - alone.median()]);
        table.row([
            way.name.to_owned(),
            format!("{}, {times}", way.seconds.show(Unit::Time)),
            Unit::Time.show(way.seconds.percentile(95.0)),
            if way.name == ways[0].name { "".into() } else { more.show(Unit::Time) },
        ]);
    }
    drop(ways);
    Ok(table.to_string())
}

fn ways<'a>(side: &'a Side, etcd: Option<&'a Etcd>) -> Vec<Way<'a>> {
    let hold = |args: &'static [&'static str]| move || drop(side.ok(args));
    let run = || side.treelease(&["run", "--tree", TREE, "--", "true"]);
    let mut ways = vec![
        way("`true`", || side.command("true"), || {}),
        way("`treelease run -- true`, the side holds the lease", run, hold(&["acquire", TREE])),
        way("`treelease run -- true`, the lease is free", run, hold(&["release", TREE])),
    ];
    if let Some(etcd) = etcd {
        let lock = || {
            let mut command = side.command("etcdctl");
            command.env("ETCDCTL_API", "3").arg("--endpoints").arg(etcd.url(0)).args(["lock", "bench", "true"]);
            command
        };
        ways.push(way("`etcdctl lock bench true`, one node, no daemon", lock, || {}));
    }
    ways
}

fn way<'a>(name: &'static str, command: impl Fn() -> Command + 'a, before: impl Fn() + 'a) -> Way<'a> {
    Way { name, command: Box::new(command), before: Box::new(before), seconds: Samples::default() }
}
