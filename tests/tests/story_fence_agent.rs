//! A fence agent between two sides, as an operator sets it up (DESIGN 3, Fences): it cuts the old holder off, asks right before that
//! whether it is still wanted, and lets it in again when a person says so, or, where the owner has agreed to that, its machine's restart.
//!
//! The holder's guard has no lock on the marker here, so that nobody but agent and person can end the fence.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use treelease_tests::hosts::{Server, Side, World, quick, wait_for};

/// Until something has happened, on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// Waits to be let go on, asks, and cuts: by writing a file, as another one would withdraw an export.
const SCRIPT: &str = r#"
echo "$TREELEASE_FENCE_VERB $TREELEASE_FENCE_TREE $TREELEASE_FENCE_SIDE" >> "$DIR/calls"
if [ "$TREELEASE_FENCE_VERB" = test ]; then ! test -e "$DIR/broken" || { echo 'the storage does not answer'; exit 1; }; exit 0; fi
if [ "$TREELEASE_FENCE_VERB" = unfence ]; then rm "$DIR/cut"; exit; fi
touch "$DIR/began"
while ! test -e "$DIR/go"; do sleep 0.1; done
treelease fence still-wanted || exit 75
touch "$DIR/cut"
"#;

/// A holder that is killed while it writes, and another side that waits; the agent has begun.
struct Story {
    _server: Server,
    a: Side,
    b: Side,
    waiting: Child,
    world: World,
}

/// An agent, and the configuration of a server that names it `nas`. Where its files lie.
fn agent_in(world: &World) -> PathBuf {
    let dir = world.directory("agent");
    let agent = dir.join("agent");
    std::fs::write(&agent, format!("#!/bin/sh\nDIR='{}'\n{SCRIPT}", dir.display())).unwrap();
    std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!("[fence.nas]\ncommand = {agent:?}\ndeadline = \"5m\"\n");
    std::fs::write(world.directory("server").join("server.toml"), config).unwrap();
    dir
}

impl Story {
    fn begun(policy: &[&str]) -> Story {
        let world = World::new();
        let _ = agent_in(&world);
        let story = Story::in_world(world, policy);
        wait_for(LONG, "the agent is run", || story.file("began").exists());
        assert_eq!(story.state(), "fencing", "the control: as long as the agent has not succeeded, nobody is let in");
        story
    }

    /// With the agent that is configured there.
    fn in_world(world: World, policy: &[&str]) -> Story {
        let server = world.server();
        let mut a = world.side("workstation", &server).fault("no_lock");
        a.boots("machine", "boot-1");
        let b = world.side("pod", &server);
        world.tree(&a, "dev", &quick(&[&["fence=exec:nas"], policy].concat()));
        a.mount("dev", &world.lower("dev"));
        b.mount("dev", &world.lower("dev"));
        a.ok(&["acquire", "dev"]);
        // Killed while it writes, it has not said that it is at rest.
        let mut shell = a.command("sh");
        shell.args(["-c", "while :; do echo x > \"$0\"; sleep 0.02; done"]).arg(a.at("dev").join("f"));
        let mut writer = shell.stderr(Stdio::null()).spawn().unwrap();
        wait_for(LONG, "it writes", || world.lower("dev").join("f").exists());
        a.kill_daemon();
        writer.kill().and_then(|()| writer.wait()).unwrap();
        let waiting = b.treelease(&["acquire", "dev", "--wait", "5m"]).spawn().unwrap();
        Story { _server: server, a, b, waiting, world }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.path("agent").join(name)
    }

    fn go(&self) {
        std::fs::write(self.file("go"), "").unwrap();
    }

    fn state(&self) -> String {
        self.b.tree_status("dev")["state"].as_str().unwrap_or_default().to_owned()
    }

    fn told(&self, event: &str, words: &str) -> bool {
        let history = self.b.ok(&["history", "dev", "-o", "json"]).json();
        let entries = history["entries"].as_array().expect("entries");
        entries.iter().any(|e| e["event"] == event && e["reason"].as_str().is_some_and(|r| r.contains(words)))
    }
}

#[test]
fn an_agent_cuts_the_old_holder_off_and_lets_it_in_again_when_a_person_says_so() {
    let mut story = Story::begun(&[]);
    story.go();
    assert!(story.waiting.wait().unwrap().success());
    assert!(story.file("cut").exists() && story.told("fenced", "the agent `nas` has fenced workstation"));
    let (a, b) = (&story.a, &story.b);
    b.ok(&["release", "dev"]);
    wait_for(LONG, "it is seen who is fenced", || b.tree_status("dev")["fenced"][0]["acting"] == false);
    let fenced = &b.tree_status("dev")["fenced"][0];
    assert_eq!((&fenced["side"], &fenced["agent"], &fenced["acting"]), (&"workstation".into(), &"nas".into(), &false.into()));
    // Its daemon starts, and has no session for a moment.
    wait_for(LONG, "its daemon has a session", || a.run(&["acquire", "dev", "-n"]).code != 69);
    a.run(&["acquire", "dev", "-n"]).refused(75, &["treelease fence unfence dev workstation"]);
    b.run(&["fence", "unfence", "dev", "pod", "--reason", "x"]).refused(66, &["pod is not fenced", "workstation"]);
    b.ok(&["fence", "unfence", "dev", "workstation", "--reason", "it was switched off and on"]);
    a.ok(&["acquire", "dev", "--wait", "5m"]);
    assert!(!story.file("cut").exists() && story.told("unfenced", "given workstation its access back"));
    let calls = std::fs::read_to_string(story.file("calls")).unwrap();
    assert_eq!(calls, "fence dev workstation\nunfence dev workstation\n");
}

#[test]
fn a_fenced_side_whose_machine_was_restarted_is_let_in_without_a_persons_word_where_the_policy_says_so() {
    let mut story = Story::begun(&["unfence=restart"]);
    story.go();
    assert!(story.waiting.wait().unwrap().success());
    story.b.ok(&["release", "dev"]);
    let a = &mut story.a;
    // Its daemon starts, and has no session for a moment.
    wait_for(LONG, "its daemon has a session", || a.run(&["acquire", "dev", "-n"]).code != 69);
    a.run(&["acquire", "dev", "-n"]).refused(75, &["treelease fence unfence dev workstation"]);
    a.kill_daemon();
    a.boots("machine", "boot-2");
    // The session of before has to end first.
    wait_for(LONG, "it is let in", || a.run(&["acquire", "dev", "--wait", "30s"]).code == 0);
    assert!(!story.file("cut").exists() && story.told("unfenced", "given workstation its access back"));
    assert!(story.told("fencing", "its machine was restarted"));
    let calls = std::fs::read_to_string(story.file("calls")).unwrap();
    assert_eq!(calls, "fence dev workstation\nunfence dev workstation\n");
}

#[test]
fn where_the_policy_does_not_say_so_a_fenced_side_whose_machine_was_restarted_stays_out_until_a_person_says_so() {
    let mut story = Story::begun(&[]);
    story.go();
    assert!(story.waiting.wait().unwrap().success());
    story.b.ok(&["release", "dev"]);
    let a = &mut story.a;
    // Its daemon starts, and has no session for a moment.
    wait_for(LONG, "its daemon has a session", || a.run(&["acquire", "dev", "-n"]).code != 69);
    a.kill_daemon();
    a.boots("machine", "boot-2");
    // Refused by the servers, it has a session of the later boot: that of before has ended.
    wait_for(LONG, "it has another session, and is refused", || {
        let said = a.run(&["acquire", "dev", "-n"]);
        said.code == 75 && said.stderr.contains("it gets nothing until `treelease fence unfence dev workstation")
    });
    assert_eq!(story.b.tree_status("dev")["fenced"][0]["unfencing"], false);
    assert!(story.file("cut").exists() && !story.told("fencing", "its machine was restarted"));
    story.b.ok(&["fence", "unfence", "dev", "workstation", "--reason", "it was switched off and on"]);
    story.a.ok(&["acquire", "dev", "--wait", "5m"]);
    assert!(!story.file("cut").exists() && story.told("unfenced", "given workstation its access back"));
}

#[test]
fn an_agent_that_asks_in_the_last_moment_does_nothing_when_a_person_has_vouched() {
    let mut story = Story::begun(&[]);
    story.b.ok(&["fence", "confirm", "dev", "--epoch", "1", "--reason", "I pulled its plug"]);
    assert!(story.waiting.wait().unwrap().success());
    story.go();
    wait_for(LONG, "the agent ends", || story.told("fencing", "did nothing (fence workstation)"));
    assert!(story.told("fencing", "is not wanted any more"), "what it was told is in its last words");
    assert!(!story.file("cut").exists() && !story.told("fenced", "the agent"));
    wait_for(LONG, "nobody has to let anybody in", || story.b.tree_status("dev")["fenced"].is_null());
}

#[test]
fn an_agent_is_tried_before_it_is_needed_and_its_failure_is_told() {
    let world = World::new();
    let dir = agent_in(&world);
    let server = world.server();
    let side = world.side("workstation", &server);
    world.tree(&side, "docs", &quick(&[]));
    side.run(&["fence", "test", "docs"]).refused(78, &["fence=manual", "fence=exec:NAME"]);
    world.tree(&side, "dev", &quick(&["fence=exec:nas"]));
    side.ok(&["fence", "test", "dev", "--dry-run"]);
    assert!(!dir.join("calls").exists());
    let said = side.ok(&["fence", "test", "dev"]);
    assert!(said.stderr.contains("The agent succeeded"), "{}", said.stderr);
    std::fs::write(dir.join("broken"), "").unwrap();
    let said = side.run(&["fence", "test", "dev", "--on", "pod"]);
    assert_eq!(said.code, 1, "{} {}", said.stdout, said.stderr);
    assert!(said.stderr.contains("The agent failed") && said.stderr.contains("the storage does not answer"), "{}", said.stderr);
    let calls = std::fs::read_to_string(dir.join("calls")).unwrap();
    assert_eq!(calls, "test dev workstation\ntest dev pod\n");
    let status = side.tree_status("dev");
    assert!(status["state"] == "free" && status["fenced"].is_null(), "{status}");
}

#[test]
fn the_ready_made_agent_of_an_nfs_server_gives_the_old_holder_another_fsid_and_lets_the_next_side_in() {
    let world = World::new();
    let (dir, bin) = (world.directory("nas"), world.directory("nas/bin"));
    let executable = |path: PathBuf, text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    executable(bin.join("exportfs"), include_str!("fence_ready_made/exportfs"));
    let agent = executable(dir.join("nfs-export"), include_str!("../../deploy/fence/nfs-export"));
    let (conf, exported) = (dir.join("conf"), dir.join("exports.d/treelease-dev@workstation.exports"));
    let at = dir.display();
    let text = format!(
        "via env PATH={at}/bin:/usr/bin:/bin STAND_IN={at}\nexports_d {at}/exports.d\nsettle 0\n\
         export dev workstation 10.0.0.11 /srv/dev rw,sync\n"
    );
    std::fs::write(&conf, text).unwrap();
    std::fs::write(dir.join("exports"), "").unwrap();
    std::fs::write(dir.join("etab"), "").unwrap();
    let config = format!("[fence.nas]\ncommand = [{agent:?}, {conf:?}]\ndeadline = \"5m\"\n");
    std::fs::write(world.directory("server").join("server.toml"), config).unwrap();
    let by_hand = Command::new(&agent).arg(&conf).args(["export", "dev", "workstation"]).output().unwrap();
    assert!(by_hand.status.success(), "{by_hand:?}");
    let before = std::fs::read_to_string(&exported).unwrap();

    let mut story = Story::in_world(world, &[]);
    assert!(story.waiting.wait().unwrap().success());
    assert!(story.told("fenced", "the agent `nas` has fenced workstation"));
    let after = std::fs::read_to_string(&exported).unwrap();
    assert!(before != after && after.starts_with("/srv/dev 10.0.0.11(rw,sync,fsid="), "{before}{after}");
    story.b.ok(&["fence", "unfence", "dev", "workstation", "--reason", "it was mounted anew"]);
    wait_for(LONG, "its way back is free", || story.told("unfenced", "given workstation its access back"));
    assert_eq!(std::fs::read_to_string(&exported).unwrap(), after, "a mount that was made meanwhile lives on");
}
