//! The ready-made fence agents (`deploy/fence/`) against stand-ins: an `exportfs` that lists what lies in a directory, an HTTP server that
//! keeps two shares, and a `treelease` whose word the test decides. Not tried here: that a real NFS server shuts anybody out.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;

/// By this exit code an agent says that it did nothing.
const NOTHING_DONE: i32 = 75;

/// Lists what lies in a directory as `exportfs -s` does; `-ra` is what makes it count.
const EXPORTFS: &str = include_str!("fence_ready_made/exportfs");

/// Whether an attempt is still wanted.
const TREELEASE: &str = r#"#!/bin/sh
echo "$*" >> "$STAND_IN/treelease-calls"
exit "$(cat "$STAND_IN/wanted")"
"#;

/// An agent, its configuration, and what it meets instead of the real things.
struct Stage {
    dir: TempDir,
    agent: PathBuf,
}

impl Stage {
    fn new(agent: &str, conf: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let stage = Self { dir: tempfile::tempdir().unwrap(), agent: root.join("deploy/fence").join(agent) };
        fs::create_dir_all(stage.at("bin")).unwrap();
        fs::create_dir_all(stage.at("exports.d")).unwrap();
        for (name, text) in [("exportfs", EXPORTFS), ("treelease", TREELEASE)] {
            let path = stage.at("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, text) in [("wanted", "0"), ("exports", ""), ("etab", ""), ("treelease-calls", ""), ("exportfs-calls", "")] {
            stage.write(name, text);
        }
        stage.write("conf", &conf.replace("DIR", &stage.dir.path().display().to_string()));
        stage
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.agent);
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        command.arg(self.at("conf")).env("PATH", path).env("STAND_IN", self.dir.path());
        command
    }

    /// Runs it as the leader does: its exit code and what it said.
    fn run(&self, verb: &str, tree: &str, side: &str, epoch: u64, attempt: u32) -> (i32, String) {
        let mut command = self.command();
        for (name, value) in [
            ("VERB", verb),
            ("TREE", tree),
            ("TREE_ID", "0b6d5b2e"),
            ("SIDE", side),
            ("EPOCH", &epoch.to_string()),
            ("ATTEMPT", &attempt.to_string()),
        ] {
            command.env(format!("TREELEASE_FENCE_{name}"), value);
        }
        ended(&mut command)
    }

    /// How often it has asked whether it is wanted.
    fn asked(&self) -> usize {
        let calls = self.read("treelease-calls");
        assert!(calls.lines().all(|call| call == "fence still-wanted"), "{calls}");
        calls.lines().count()
    }
}

fn ended(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("bash runs the agent");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), said)
}

fn fsid_of(export: &str) -> String {
    let (_, rest) = export.split_once("fsid=").unwrap_or_else(|| panic!("no fsid in {export}"));
    rest.trim_end().trim_end_matches(')').to_owned()
}

// --- an export of a Linux NFS server ------------------------------------------------------------------------------------

const NFS: &str = "# who mounts what\nexports_d DIR/exports.d\nsettle 0\n\
                   export dev workstation 10.0.0.11 /srv/dev rw,sync,no_subtree_check\n\
                   export dev pod 10.0.0.12 /srv/dev rw,sync,no_subtree_check";

/// Both sides' first exports are there.
fn exported() -> Stage {
    let stage = Stage::new("nfs-export", NFS);
    for side in ["workstation", "pod"] {
        let (code, said) = ended(stage.command().args(["export", "dev", side]));
        assert_eq!(code, 0, "{said}");
    }
    stage
}

#[test]
fn each_epoch_gives_the_fenced_sides_export_another_fsid_and_the_others_stay() {
    let stage = exported();
    let (mine, other) = ("exports.d/treelease-dev@workstation.exports", "exports.d/treelease-dev@pod.exports");
    let (first, pod) = (stage.read(mine), stage.read(other));
    assert!(first.starts_with("/srv/dev 10.0.0.11(rw,sync,no_subtree_check,fsid="), "{first}");
    assert_ne!(fsid_of(&first), fsid_of(&pod));
    assert_eq!(stage.run("test", "dev", "workstation", 3, 0).0, 0);
    assert_eq!((stage.read(mine), stage.asked()), (first.clone(), 0), "a test changes nothing");

    let (code, said) = stage.run("fence", "dev", "workstation", 3, 1);
    assert_eq!((code, stage.asked()), (0, 1), "{said}");
    let third = stage.read(mine);
    assert_ne!(fsid_of(&third), fsid_of(&first));
    assert!(
        stage.read("etab").contains(&fsid_of(&third)) && !stage.read("etab").contains(&fsid_of(&first)),
        "the old one is dead"
    );
    // Again, and from another node, and its way back: the same export, so a mount that was made since lives on.
    for (verb, attempt) in [("fence", 1), ("fence", 2), ("unfence", 3)] {
        let (code, said) = stage.run(verb, "dev", "workstation", 3, attempt);
        assert_eq!((code, stage.read(mine)), (0, third.clone()), "{said}");
    }
    assert_eq!(stage.asked(), 1, "where nothing is to be done nobody needs to be asked");
    assert_eq!(stage.run("fence", "dev", "workstation", 9, 1).0, 0);
    assert_ne!(fsid_of(&stage.read(mine)), fsid_of(&third));
    assert_eq!(stage.read(other), pod);
}

#[test]
fn an_export_is_left_alone_when_it_is_not_wanted_not_configured_or_not_single() {
    let stage = exported();
    let file = "exports.d/treelease-dev@workstation.exports";
    let before = stage.read(file);
    stage.write("wanted", "75");
    let (code, said) = stage.run("fence", "dev", "workstation", 3, 1);
    assert_eq!((code, stage.asked()), (NOTHING_DONE, 1), "{said}");
    stage.write("wanted", "0");
    for (tree, side) in [("docs", "workstation"), ("dev", "laptop"), ("", "")] {
        let (code, said) = stage.run("fence", tree, side, 3, 1);
        assert_eq!(code, NOTHING_DONE, "{said}");
        assert!(said.contains("names no export"), "{said}");
    }
    assert_eq!(stage.run("reboot", "dev", "workstation", 3, 1).0, NOTHING_DONE);
    // Somebody else's line would let the side in by its old handles.
    for line in ["/srv/dev *(rw,fsid=7)\n", "/srv/dev 10.0.0.0/24(rw,fsid=7)\n"] {
        stage.write("exports", line);
        assert!(ended(Command::new(stage.at("bin/exportfs")).arg("-ra").env("STAND_IN", stage.dir.path())).0 == 0);
        for verb in ["test", "fence"] {
            let (code, said) = stage.run(verb, "dev", "workstation", 3, 1);
            assert_eq!(code, NOTHING_DONE, "{said}");
            assert!(said.contains("more than single hosts"), "{said}");
        }
    }
    assert_eq!(
        (stage.read(file), stage.asked()),
        (before, 1),
        "nothing was changed, and nobody asked for what was not to be done"
    );
}

#[test]
fn a_server_that_did_not_take_the_new_export_is_no_success() {
    let stage = exported();
    // The stand-in believes nothing any more.
    let exportfs = stage.at("bin/exportfs");
    fs::write(&exportfs, EXPORTFS.replace("-ra) cat", "-ra) : || cat")).unwrap();
    let (code, said) = stage.run("fence", "dev", "workstation", 3, 1);
    assert!(code != 0 && code != NOTHING_DONE, "{code}: {said}");
    assert!(said.contains("not exported so"), "{said}");
}

#[test]
fn a_configuration_that_could_mean_something_else_is_refused_with_its_line() {
    for (line, says) in [
        ("export dev workstation 10.0.0.0/24 /srv/dev rw", "one host"),
        ("export dev workstation * /srv/dev rw", "one host"),
        ("export dev workstation 10.0.0.11 srv/dev rw", "PATH"),
        ("export dev workstation 10.0.0.11 /srv/dev;reboot rw", "PATH"),
        ("export dev workstation 10.0.0.11 /srv/dev rw,fsid=5", "without fsid"),
        ("export dev workstation 10.0.0.11 /srv/dev rw)", "OPTIONS"),
        ("export dev workstation 10.0.0.11 /srv/dev", "write it as"),
        ("exports dev", "no such key"),
        ("settle soon", "seconds"),
    ] {
        let stage = Stage::new("nfs-export", &format!("exports_d DIR/exports.d\n{line}\n"));
        let (code, said) = stage.run("fence", "dev", "workstation", 3, 1);
        assert_eq!(code, NOTHING_DONE, "{line}: {said}");
        assert!(said.contains("conf:2: ") && said.contains(says), "{line}: {said}");
    }
}

// --- a share of TrueNAS -------------------------------------------------------------------------------------------------

/// Keeps shares, and knows one key.
struct TrueNas {
    url: String,
    shares: Arc<Mutex<Value>>,
    calls: Arc<Mutex<Vec<String>>>,
    /// What it answers to a change, instead of making it.
    refuses: Arc<Mutex<bool>>,
}

impl TrueNas {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nas = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            shares: Arc::new(Mutex::new(json!([share(7, "10.0.0.11"), share(8, "10.0.0.12")]))),
            calls: Arc::default(),
            refuses: Arc::default(),
        };
        let (shares, calls, refuses) = (nas.shares.clone(), nas.calls.clone(), nas.refuses.clone());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer(stream.unwrap(), &shares, &calls, &refuses);
            }
        });
        nas
    }

    fn stage(&self) -> Stage {
        let share = "share dev workstation 7 /mnt/tank/dev\nshare dev pod 8 /mnt/tank/dev";
        let stage = Stage::new("truenas-share", &format!("url {}\nkey_file DIR/key\n{share}\n", self.url));
        stage.write("key", "1-secret\n");
        stage
    }

    fn enabled(&self) -> [bool; 2] {
        let shares = self.shares.lock().unwrap();
        [0, 1].map(|n| shares[n]["enabled"].as_bool().unwrap())
    }

    fn change(&self, share: usize, key: &str, value: Value) {
        self.shares.lock().unwrap()[share][key] = value;
    }

    fn puts(&self) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.starts_with("PUT")).count()
    }
}

fn share(id: u64, host: &str) -> Value {
    json!({"id": id, "path": "/mnt/tank/dev", "hosts": [host], "networks": [], "enabled": true, "ro": false})
}

fn answer(stream: TcpStream, shares: &Mutex<Value>, calls: &Mutex<Vec<String>>, refuses: &Mutex<bool>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length, mut key) = (String::new(), 0, String::new());
    reader.read_line(&mut head)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => key = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    calls.lock().unwrap().push(format!("{method} {path}"));
    let mut shares = shares.lock().unwrap();
    let id = path.strip_prefix("/api/v2.0/sharing/nfs/id/").and_then(|id| id.parse::<u64>().ok());
    let (code, said) = match (method, id) {
        _ if key != "Bearer 1-secret" => (401, json!({"message": "who is that?"})),
        ("GET", None) if path == "/api/v2.0/sharing/nfs" => (200, shares.clone()),
        ("PUT", Some(_)) if *refuses.lock().unwrap() => (422, json!({"message": "the pool is locked"})),
        ("PUT", Some(id)) => match shares.as_array_mut().unwrap().iter_mut().find(|share| share["id"] == id) {
            Some(share) => {
                let change: Value = serde_json::from_slice(&body).unwrap();
                share["enabled"] = change["enabled"].clone();
                (200, share.clone())
            }
            None => (404, json!({})),
        },
        _ => (404, json!({})),
    };
    let text = said.to_string();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {code} said\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

#[test]
fn a_share_is_disabled_and_enabled_again_and_the_others_stay() {
    let nas = TrueNas::start();
    let stage = nas.stage();
    let (code, said) = stage.run("test", "dev", "workstation", 3, 0);
    assert_eq!((code, nas.enabled(), nas.puts()), (0, [true, true], 0), "{said}");
    for attempt in 1..3 {
        let (code, said) = stage.run("fence", "dev", "workstation", 3, attempt);
        assert_eq!((code, nas.enabled()), (0, [false, true]), "{said}");
    }
    assert_eq!((nas.puts(), stage.asked()), (1, 1), "the second time changes nothing");
    let (code, said) = stage.run("unfence", "dev", "workstation", 3, 3);
    assert_eq!((code, nas.enabled(), stage.asked()), (0, [true, true], 2), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn a_share_is_left_alone_when_it_is_not_wanted_not_configured_or_not_the_one_that_is_meant() {
    let nas = TrueNas::start();
    let stage = nas.stage();
    let refused = |says: &str| {
        let (code, said) = stage.run("fence", "dev", "workstation", 3, 1);
        assert_eq!((code, nas.puts()), (NOTHING_DONE, 0), "{says}: {said}");
        assert!(said.contains(says) && !said.contains("secret"), "{says}: {said}");
    };
    stage.write("wanted", "75");
    refused("not wanted");
    stage.write("wanted", "0");
    let (code, said) = stage.run("fence", "dev", "laptop", 3, 1);
    assert_eq!((code, nas.puts()), (NOTHING_DONE, 0), "{said}");
    assert_eq!(stage.run("reboot", "dev", "workstation", 3, 1).0, NOTHING_DONE);
    for (share, key, value, says) in [
        (0, "path", json!("/mnt/tank/docs"), "is of /mnt/tank/docs"),
        (0, "hosts", json!([]), "not for single hosts"),
        (0, "networks", json!(["10.0.0.0/24"]), "not for single hosts"),
        (1, "hosts", json!([]), "lets that side in, too"),
        (1, "hosts", json!(["10.0.0.12", "10.0.0.11"]), "lets that side in, too"),
        (1, "networks", json!(["10.0.0.0/24"]), "lets that side in, too"),
        (0, "id", json!(70), "no share 7"),
    ] {
        let before = nas.shares.lock().unwrap().clone();
        nas.change(share, key, value);
        refused(says);
        *nas.shares.lock().unwrap() = before;
    }
    nas.shares.lock().unwrap().as_array_mut().unwrap().push(json!({
        "id": 9, "path": "/mnt/tank", "hosts": [], "networks": [], "enabled": true
    }));
    refused("share 9 of /mnt/tank lets that side in, too");
    // The control: a share of something else, and one that is disabled, are nobody's business.
    nas.change(2, "path", json!("/mnt/tank/devices"));
    assert_eq!(stage.run("test", "dev", "workstation", 3, 0).0, 0);
    nas.change(2, "path", json!("/mnt/tank"));
    nas.change(2, "enabled", json!(false));
    assert_eq!(stage.run("test", "dev", "workstation", 3, 0).0, 0);
    stage.write("key", "wrong\n");
    refused("does not answer");
    stage.write("key", "");
    refused("no API key");
}

#[test]
fn a_change_that_was_refused_or_did_not_happen_is_no_success() {
    let nas = TrueNas::start();
    let stage = nas.stage();
    *nas.refuses.lock().unwrap() = true;
    let (code, said) = stage.run("fence", "dev", "workstation", 3, 1);
    assert_eq!((code, nas.enabled()), (1, [true, true]), "{said}");
    assert!(said.contains("the pool is locked"), "{said}");
}
