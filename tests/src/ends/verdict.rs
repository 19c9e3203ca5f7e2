//! Everything that must be true when all has been healed.
//!
//! Of two kinds. *Broken promises* ([`Scene::broken`]): two gates that admitted at once, something acknowledged that is gone, a late
//! write, an epoch that went back, a process that panicked. They go through [`violated`]. And *too slow*: somebody does not get the
//! tree, a command hangs; a plain failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::gates::{self, Success};
use super::plan::Plan;
use super::scene::{SOON, Scene};
use super::scribe::{LINE, LINES};
use super::work::{DATABASE, Habit, TREE};
use crate::hosts::{holds_within, violated};
use crate::ledger;

/// Until a side has the tree again after everything was healed: time to live, grace, elections, connections that must be made
/// anew, and a machine that does ten things at once.
const GOES_ON: Duration = Duration::from_secs(90);
/// The most events that a server keeps of a tree.
const HISTORY: &str = "1000";

/// What a run has shown.
#[derive(Debug, Default)]
pub struct Report {
    /// Writes that succeeded, by side.
    pub writes: [usize; 2],
    /// Grants.
    pub grants: usize,
    /// Rows that were acknowledged.
    pub rows: u64,
    /// Lines that were acknowledged.
    pub lines: usize,
}

impl Scene {
    /// After everything was healed: both sides go on, all programs end, and every promise was kept.
    pub fn conclude(mut self) -> Report {
        for side in 0..2 {
            self.look_at_daemon(side);
            self.goes_on(side, GOES_ON);
        }
        for (_, mut work) in std::mem::take(&mut self.work) {
            if let Err(why) = work.stop() {
                panic!("{why}");
            }
        }
        self.tell("the programs have ended");
        let mut broken: Vec<String> = (0..2).filter_map(|side| self.seen_by(side)).collect();
        for side in 0..2 {
            let done = self.sides[side].run(&["down"]);
            self.tell(&format!("down of {}: {}", self.sides[side].name(), done.code));
        }
        let (more, report) = self.broken();
        broken.extend(more);
        if !broken.is_empty() {
            let text = format!("{}\n{}\nagain: {}", broken.join("\n"), self.story(), self.setting.replay);
            violated(&self.setting.name, &text);
        }
        eprintln!("{}: {report:?}", self.setting.name);
        report
    }

    /// What a side does not see through its mount, while it holds the tree.
    fn seen_by(&mut self, side: usize) -> Option<String> {
        let (side, rows) = (self.sides[side].clone(), [self.kept(0).rows, self.kept(1).rows]);
        let tool = crate::hosts::executable("ledger");
        let database = side.file(TREE, DATABASE);
        let words: Vec<&str> = [tool.to_str(), Some("check"), Some(&database), rows[0].to_str(), rows[1].to_str()]
            .into_iter()
            .map(|word| word.expect("our own path"))
            .collect();
        // Where the programs ended before the first row there may be no database, or one without its table.
        let nothing = rows.iter().all(|file| std::fs::metadata(file).map_or(0, |m| m.len()) == 0);
        let words = if nothing { vec!["true"] } else { words };
        let mut last = String::new();
        let sound = holds_within(SOON, || {
            let run = ["run", "--tree", TREE, "--ask", "--wait", "10s", "--"];
            let checked = side.run(&[&run[..], &words].concat());
            let cat = side.run(&[&run[..], &["cat", &side.file(TREE, LINES)]].concat());
            let missing = self.lines_missing(&cat.stdout);
            last = format!("{checked}\nlines missing: {missing:?}");
            checked.code == 0 && cat.code == 0 && missing.is_empty()
        });
        (!sound).then(|| format!("seen through the mount of {}: {last}", side.name()))
    }

    fn acknowledged_lines(&self) -> BTreeSet<String> {
        let read = |side| std::fs::read_to_string(self.kept(side).lines).unwrap_or_default();
        (0..2).flat_map(|side| read(side).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn lines_missing(&self, text: &str) -> Vec<String> {
        let there: BTreeSet<&str> = text.lines().filter(|line| line.len() == LINE - 1).collect();
        self.acknowledged_lines().into_iter().filter(|line| !there.contains(line.as_str())).collect()
    }

    /// When writes succeeded.
    pub fn writes(&self) -> Vec<Success> {
        let read = |side| std::fs::read_to_string(self.kept(side).notes).unwrap_or_default();
        (0..2).flat_map(|side| read(side).lines().filter_map(|line| Success::parse(side, line)).collect::<Vec<_>>()).collect()
    }

    /// The promises that were broken, by what lies on the storage, in the history, in the notes and in the logs. No daemon runs.
    pub fn broken(&self) -> (Vec<String>, Report) {
        let mut broken = Vec::new();
        let lower = self.lower();
        let rows = [self.kept(0).rows, self.kept(1).rows];
        let verdict = ledger::check(&lower.join(DATABASE), &[&rows[0], &rows[1]]);
        let acknowledged = match verdict {
            Ok(verdict) if verdict.is_sound() || verdict.acknowledged == 0 => verdict.acknowledged,
            Ok(verdict) => {
                broken.push(format!("the database: {verdict:?}"));
                verdict.acknowledged
            }
            Err(e) => {
                broken.push(format!("the database: {e}"));
                0
            }
        };
        let text = String::from_utf8_lossy(&std::fs::read(lower.join(LINES)).unwrap_or_default()).into_owned();
        let missing = self.lines_missing(&text);
        // Lines are as long as they are, and no page ends within one: whatever was cut off, a line is whole or not there.
        let torn: Vec<&str> = text.lines().filter(|line| line.len() != LINE - 1 || line.contains('\0')).take(20).collect();
        if !torn.is_empty() {
            broken.push(format!("lines are torn: {torn:?}"));
        }
        if !missing.is_empty() {
            broken.push(format!(
                "acknowledged lines are gone: {} of them: {:?}",
                missing.len(),
                &missing[..missing.len().min(20)]
            ));
        }
        let grants = self.granted(&mut broken);
        let writes = self.writes();
        broken.extend(gates::judge(&writes, &grants).into_iter().take(20));
        for side in &self.sides {
            if !self.setting.over && std::fs::read_dir(side.at(TREE)).is_ok_and(|mut dir| dir.next().is_some()) {
                broken.push(format!("{} wrote to what lies below its mount", side.name()));
            }
        }
        broken.extend(self.ended.iter().cloned());
        broken.extend(panicked(self.world.dir()));
        let count = |side| writes.iter().filter(|w| w.side == side).count();
        let lines = self.acknowledged_lines().len();
        (broken, Report { writes: [count(0), count(1)], grants: grants.len(), rows: acknowledged, lines })
    }

    /// Who was granted which epoch, by the history; and what is wrong with it.
    pub fn granted(&self, broken: &mut Vec<String>) -> BTreeMap<u64, usize> {
        let mut history = serde_json::Value::Null;
        let told = holds_within(SOON, || {
            let done = self.operator.run(&["history", TREE, "-n", HISTORY, "-o", "json"]);
            history = serde_json::from_str(&done.stdout).unwrap_or_default();
            done.code == 0
        });
        assert!(told, "no history");
        let (mut granted, mut highest) = (BTreeMap::new(), 0);
        for entry in history["entries"].as_array().into_iter().flatten() {
            let epoch = entry["epoch"].as_u64().unwrap_or_default();
            match entry["event"].as_str() {
                Some("granted") => {
                    if epoch <= highest {
                        broken.push(format!("epoch {epoch} was granted after {highest}"));
                    }
                    highest = highest.max(epoch);
                    let side = self.sides.iter().position(|side| entry["side"] == side.name());
                    granted.extend(side.map(|side| (epoch, side)));
                }
                Some("late_write") => broken.push(format!("a late write: {entry}")),
                _ => {}
            }
        }
        granted
    }
}

/// Words of a panic in any log of ours.
fn panicked(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.ends_with(".log") {
                let log = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
                let at = log.lines().filter(|line| line.contains("panicked at"));
                found.extend(at.map(|line| format!("{}: {line}", path.display())));
            } else if name != "mnt" && !name.starts_with("lower") && entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(path);
            }
        }
    }
    found
}

/// One run of a seed, from its beginning to its verdict.
pub fn run(plan: &Plan, mut setting: super::scene::Setting) -> Report {
    setting.small_disks = plan.fills_a_disk();
    setting.policy = vec![if plan.manual_fence { "fence=manual" } else { "fence=none" }];
    (setting.journal, setting.seed) = (plan.journal, plan.seed);
    let mut scene = Scene::new(setting);
    scene.tell(&format!("{plan:?}"));
    (0..2).for_each(|side| scene.work(side, Habit::Restful));
    scene.play(plan);
    scene.conclude()
}
