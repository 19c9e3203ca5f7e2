//! What the guard costs: the same work bare, through bindfs and through the guard, round by round.

use std::time::Duration;

use super::disk::Disk;
use super::material::Material;
use super::places::{Kind, Place, Places};
use super::requests::{Counts, Tracer};
use super::stats::{Samples, Unit, thousands};
use super::table::Table;
use super::workloads::{self, Timed, Workload};
use super::{Ground, Settings, say};
use crate::hosts::Timer;

/// Kinds of requests that the second table names.
const KINDS: usize = 6;

/// Times the work, or counts its requests.
struct Clock<'a> {
    disk: &'a Disk,
    counting: Option<&'a Tracer>,
    took: Duration,
    counted: Counts,
}

impl Timed for Clock<'_> {
    fn time(&mut self, place: &Place, work: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.disk.settle()?;
        place.wake()?;
        if let Some(tracer) = self.counting
            && place.kind != Kind::Bare
        {
            let ((), counted) = tracer.count(place.connection(), work)?;
            self.counted = counted;
            return Ok(());
        }
        let timer = Timer::start();
        let done = work();
        self.took = timer.elapsed();
        done
    }
}

/// What was found for one workload, per place.
struct Found {
    workload: Workload,
    seconds: Vec<Samples>,
    counts: Vec<Counts>,
}

/// Measures, and returns the tables.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    say("making what the workloads work with");
    let material = Material::new(settings, ground)?;
    let places = Places::new(settings, ground)?;
    let tracer = Tracer::new(ground).inspect_err(|why| say(format!("requests are not counted: {why:#}"))).ok();
    let n = places.list.len();
    let mut found: Vec<Found> = workloads::chosen(workloads::all(&material), &settings.rows)?
        .into_iter()
        .map(|workload| Found { workload, seconds: vec![Samples::default(); n], counts: vec![Counts::default(); n] })
        .collect();
    for place in &places.list {
        workloads::furnish(&material, place)?;
    }
    // Round 0 warms everything up, and is the one that is counted: tracing would cost time in the others.
    for round in 0..=settings.rounds {
        for (row, found) in found.iter_mut().enumerate() {
            for turn in 0..n {
                let at = (turn + row + round) % n;
                let counting = if round == 0 { tracer.as_ref() } else { None };
                let mut clock = Clock { disk: &ground.disk, counting, took: Duration::ZERO, counted: Counts::default() };
                (found.workload.act)(&material, &places.list[at], &mut clock)?;
                match round {
                    0 => found.counts[at] = clock.counted,
                    _ => found.seconds[at].push(clock.took.as_secs_f64()),
                }
            }
        }
        say(if round == 0 { "warm".into() } else { format!("round {round} of {} of the guard", settings.rounds) });
    }
    Ok(tables(&places.list, &found, tracer.is_some()))
}

fn tables(places: &[Place], found: &[Found], counted: bool) -> String {
    let at = |kind| places.iter().position(|place| place.kind == kind);
    let ours = at(Kind::Treelease).expect("it is always measured");
    let bare = at(Kind::Bare).expect("it is always measured");
    let bindfs = at(Kind::Bindfs);
    let mut head = vec!["workload".to_owned()];
    head.extend(places.iter().map(|place| place.kind.name().to_owned()));
    head.extend(bindfs.map(|_| "bindfs : bare".to_owned()));
    head.push("treelease : bare".into());
    head.extend(bindfs.map(|_| "treelease : bindfs".to_owned()));
    head.push("goal, × bare at most".into());
    let mut times = Table::new(head);
    for Found { workload, seconds, .. } in found {
        let mut row = vec![workload.name.clone()];
        row.extend(seconds.iter().map(|s| s.map(|t| workload.shown(t)).show(workload.unit)));
        row.extend(bindfs.map(|other| seconds[other].ratio(&seconds[bare]).show(Unit::Ratio)));
        let (to_bare, to_bindfs) =
            (seconds[ours].ratio(&seconds[bare]), bindfs.map(|other| seconds[ours].ratio(&seconds[other])));
        row.push(to_bare.show(Unit::Ratio));
        row.extend(to_bindfs.iter().map(|ratio| ratio.show(Unit::Ratio)));
        row.push(workload.goal.of_time(&to_bare, to_bindfs.as_ref()));
        times.row(row);
    }
    if !counted {
        return format!("{times}\nFUSE requests were not counted: no tracepoint here.\n");
    }
    let others: Vec<usize> = bindfs.into_iter().chain([ours]).collect();
    let mut head = vec!["FUSE requests".to_owned()];
    head.extend(others.iter().map(|at| places[*at].kind.name().to_owned()));
    head.push("treelease's, the most frequent".into());
    head.push("goal".into());
    let mut requests = Table::new(head);
    for Found { workload, counts, .. } in found {
        let most = counts[ours].most(KINDS).into_iter().map(|(kind, n)| format!("{kind} {}", thousands(n)));
        let mut row = vec![workload.name.clone()];
        row.extend(others.iter().map(|at| thousands(counts[*at].total())));
        row.push(most.collect::<Vec<_>>().join(", "));
        row.push(workload.goal.of_requests(&counts[ours]));
        requests.row(row);
    }
    format!("{times}\n{requests}")
}
