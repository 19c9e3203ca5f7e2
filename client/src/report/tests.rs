//! The keys are the contract's: each of them is there, under its name.

use serde_json::Value;

use super::*;
use crate::words::command::EventKind;
use crate::words::epoch::{Epoch, RunStart};
use crate::words::id::{ClusterId, LockKind, MarkerLock, Place, SessionId, TreeId};
use crate::words::policy::Policy;
use crate::words::refusal::Code;
use crate::words::time::Ttl;
use crate::words::tree::GuardOf;

fn tree() -> TreeStatus {
    let epoch = Epoch::from_raw(42);
    let since = WallTime::parse("2026-11-21T09:14:00Z");
    let holder = Holder {
        side: "pod".parse().unwrap(),
        host: "dev-0".into(),
        session: SessionId::random(),
        epoch,
        since,
        note: "a build".into(),
    };
    let waiter = Waiter {
        side: "workstation".parse().unwrap(),
        host: "laptop".into(),
        session: SessionId::random(),
        since,
        asked: true,
        first_write: false,
        note: String::new(),
    };
    TreeStatus {
        id: TreeId::random(),
        name: "dev".parse().unwrap(),
        policy: Policy::default(),
        roots: vec![],
        state: StateName::Held,
        holder: Some(holder),
        at_rest: false,
        epoch,
        run_start: RunStart(Epoch::from_raw(40)),
        run_side: None,
        last_end: End::Clean,
        waiters: vec![waiter],
        attempt: 0,
        why: String::new(),
        ttl: Some(Ttl::DEFAULT),
        remaining: Some(std::time::Duration::from_millis(9_120)),
        ended_epoch: None,
        ended_side: None,
        declined: String::new(),
        witness: None,
        fenced: vec![],
        mode_no: 0,
        guards: vec![],
    }
}

fn status() -> ClusterStatus {
    ClusterStatus {
        cluster: ClusterId::random(),
        revision: 812,
        leader: Some(1),
        nodes: 3,
        quorum: true,
        secure: true,
        trees: vec![tree()],
        sessions: vec![],
        ttl_min: Ttl::MIN,
        ttl_max: Ttl::MAX,
        predecessors: vec![],
        members: vec![],
        joint: false,
        age: None,
    }
}

fn has_keys(value: &Value, keys: &str) {
    for key in keys.split(' ') {
        assert!(value.get(key).is_some(), "`{key}` is missing in {value:#}");
    }
}

#[test]
fn status_has_the_contracts_keys() {
    let side = "workstation".parse().unwrap();
    let report = Report::new(&status(), Some(&side), WallTime::UNKNOWN, |_| None);
    let json = serde_json::to_value(&report).unwrap();
    has_keys(&json, "schema side server trees");
    has_keys(&json["server"], "reachable leader nodes quorum secure revision");
    let tree = &json["trees"][0];
    has_keys(
        tree,
        "name id state mode mounted_at holder mine at_rest epoch run_start ttl_ms expires_in_ms writes_until last_end waiters \
         requests holds not_enforced_by fence roots",
    );
    has_keys(&tree["holder"], "side host since note");
    has_keys(&tree["waiters"][0], "side since asked");
    assert_eq!(tree["requests"].as_array().unwrap().len(), 1);
    assert_eq!((&tree["state"], &tree["mode"], &tree["last_end"]), (&"held".into(), &"enforce".into(), &"clean".into()));
    assert_eq!((&tree["mine"], &tree["fence"], &tree["epoch"]), (&false.into(), &Value::Null, &42.into()));
    assert_eq!(tree["expires_in_ms"], 9_120);
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report, "and is read back");
}

#[test]
fn a_fencing_tree_says_what_it_needs_and_whose_end_it_is() {
    let mut tree = tree();
    (tree.state, tree.attempt, tree.ended_epoch) = (StateName::Fencing, 1, Some(Epoch::from_raw(42)));
    let json = serde_json::to_value(tree_report(&tree, None, None)).unwrap();
    has_keys(&json["fence"], "attempt needs witness");
    assert_eq!(json["fence"]["needs"], "confirm");
    assert_eq!(json["fence"]["witness"], Value::Null, "the old holder had no lock that could be one");
    tree.witness = Some(MarkerLock { kind: LockKind::Local, place: Place { boot: "b".into(), superblock: 1 }, inode: 2 });
    assert_eq!(tree_report(&tree, None, None).fence.unwrap().witness.as_deref(), Some("possible"));
    let local = LocalTree { witness: Some("asking".into()), ..LocalTree::default() };
    assert_eq!(tree_report(&tree, None, Some(local)).fence.unwrap().witness.as_deref(), Some("asking"));
    assert_eq!(json["ended_epoch"], 42);
    assert_eq!(json["fenced"], Value::Null, "nobody is");
}

#[test]
fn a_fenced_side_is_named_with_its_agent() {
    let mut tree = tree();
    let side = "pod".parse().unwrap();
    let epoch = Epoch::from_raw(41);
    tree.fenced = vec![FencedSide { side, epoch, agent: "nas".into(), acting: true, unfencing: false }];
    let json = serde_json::to_value(tree_report(&tree, None, None)).unwrap();
    has_keys(&json["fenced"][0], "side epoch agent acting unfencing");
    assert_eq!((&json["fenced"][0]["side"], &json["fenced"][0]["epoch"]), (&"pod".into(), &41.into()));
}

#[test]
fn the_state_file_is_the_report_and_when_it_was_written() {
    let file = StatusFile { report: Report::unknown(None), written_at: WallTime::UNKNOWN };
    let json = serde_json::to_value(&file).unwrap();
    has_keys(&json, "schema side server trees written_at");
    assert_eq!(serde_json::from_value::<StatusFile>(json).unwrap(), file);
}

#[test]
fn watch_and_history_have_the_contracts_keys() {
    let event = Event {
        revision: 813,
        at: WallTime::UNKNOWN,
        tree: TreeId::random(),
        name: "dev".parse().unwrap(),
        kind: EventKind::LateWrite,
        side: None,
        session: None,
        epoch: Epoch::from_raw(42),
        run_start: RunStart::default(),
        actor: "pod@dev-0".into(),
        reason: String::new(),
        end: End::None,
        files: 3,
        bytes: 86_016,
        count: 1,
    };
    let line = serde_json::to_value(EventLine::from(&event)).unwrap();
    has_keys(&line, "schema revision at tree event side epoch reason");
    assert_eq!((&line["tree"], &line["event"]), (&"dev".into(), &"late_write".into()));
    let history = serde_json::to_value(HistoryReport::new("dev", &[event])).unwrap();
    has_keys(&history, "schema tree entries");
    has_keys(&history["entries"][0], "revision at tree event side epoch reason actor clean files bytes");
    assert_eq!(history["entries"][0]["clean"], Value::Null);
}

#[test]
fn an_error_names_the_next_thing_to_type() {
    let failure = Failure::new(Code::Held, "held by pod").hint("ask for it with `treelease acquire dev --ask`");
    let json = serde_json::to_value(ErrorReport::from(&failure)).unwrap();
    has_keys(&json, "schema code message holder next");
    assert_eq!((&json["code"], &json["next"]), (&"held".into(), &"treelease acquire dev --ask".into()));
}

#[test]
fn writers_have_the_contracts_keys() {
    let at = WallTime::parse("2026-11-21T09:14:00Z");
    let (tree, command, path) = ("dev".into(), "gsd".into(), "notes.db".into());
    let one = WriterReport { tree, pid: 812, uid: 1000, command, path, count: 9, refused: 0, first: at, last: at };
    let json = serde_json::to_value(WritersReport { schema: SCHEMA, writers: vec![one] }).unwrap();
    has_keys(&json, "schema writers");
    has_keys(&json["writers"][0], "tree pid uid command path count refused first last");
}

#[test]
fn who_does_not_enforce_yet_is_named_only_while_something_is_to_be_enforced() {
    let guard = |side: &str, obeys| GuardOf { side: side.parse().unwrap(), obeys };
    let guards = vec![guard("pod", false), guard("workstation", true)];
    let of = |mode| TreeStatus { guards: guards.clone(), policy: Policy { mode, ..Policy::default() }, ..tree() };
    assert_eq!(tree_report(&of(Mode::Enforce), None, None).not_enforced_by, ["pod"]);
    assert!(tree_report(&of(Mode::Observe), None, None).not_enforced_by.is_empty());
}
