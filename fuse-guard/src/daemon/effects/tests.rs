//! What is noted for a restart before the servers hear of it, as an example.

use tokio::sync::mpsc;
use treelease_client::config::{Env, Overrides};
use treelease_client::words::command::Grant;
use treelease_client::words::epoch::RunStart;
use treelease_client::words::id::SessionId;
use treelease_client::words::tree::End;

use super::*;

/// A daemon with a session and one tree, what it sends about that tree, and its state directory.
fn daemon(dir: &std::path::Path) -> (Daemon, TreeId, mpsc::Receiver<Job>) {
    let given = Overrides {
        side: Some("pod".into()),
        state_dir: Some(dir.to_owned()),
        runtime_dir: Some(dir.to_owned()),
        ..Overrides::default()
    };
    let nowhere = Env {
        home: Some(dir.to_owned()),
        xdg_config_home: None,
        xdg_state_home: None,
        xdg_runtime_dir: None,
        system_config: dir.join("none"),
        ..Env::from_process()
    };
    let config = treelease_client::config::Config::load(&given, &nowhere).unwrap();
    let mut daemon = Daemon::new(config).unwrap();
    daemon.file.session = Some(SessionId::random());
    let id = TreeId::random();
    let (wire, jobs) = mpsc::channel(8);
    let tree = daemon.tree_entry(&id, &"dev".parse().unwrap());
    tree.wire = wire;
    (daemon, id, jobs)
}

fn grant(id: &TreeId) -> Grant {
    let epoch = Epoch::from_raw(1);
    Grant { tree: id.clone(), epoch, run_start: RunStart(epoch), root: None, last_end: End::Clean }
}

#[tokio::test]
async fn what_could_not_be_noted_for_a_restart_is_not_said_to_the_servers_yet() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, id, mut jobs) = daemon(dir.path());
    let now = daemon.clock.now();
    // Nothing can take the place of a directory that is not empty.
    let in_the_way = dir.path().join("session.json");
    std::fs::create_dir_all(in_the_way.join("full")).unwrap();
    let step = |request| Step::Release { files: 0, bytes: 0, to: None, request };

    let tree = daemon.trees.get_mut(&id).unwrap();
    tree.side.handle_grant(grant(&id), now);
    daemon.step(&id, step(1), now);
    assert!(jobs.try_recv().is_err(), "a release that a restarted daemon would not know of");
    daemon.trees.get_mut(&id).unwrap().side.handle_down(now);
    daemon.carry_out(now);
    assert!(jobs.try_recv().is_err(), "a grant given back that a restarted daemon would not know of");

    std::fs::remove_dir_all(&in_the_way).unwrap();
    let tree = daemon.trees.get_mut(&id).unwrap();
    let again = tree.side.next_deadline().expect("it is tried again");
    tree.side.handle_timeout(again);
    daemon.carry_out(again);
    assert!(matches!(jobs.try_recv().unwrap().command, Command::GiveBack { .. }));
    assert!(in_the_way.is_file());
}
