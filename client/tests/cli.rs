//! What the command says when things are not as they should be: the sentence, the exit code, and that nothing was left behind.
//! Run as the built binary, on private directories, without daemon or server.

mod common;

use std::os::fd::AsFd;

use common::Side;
use treelease_client::exit::Exit;
use treelease_client::marker::{self, Marker};
use treelease_client::words::id::{ClusterId, RootId, TreeId};

/// A port that nobody listens on.
const NOBODY: &str = "http://127.0.0.1:1";

#[test]
fn with_nothing_set_up_status_says_how_to_begin() {
    let went = Side::new().run(&["status"]);
    assert_eq!(went.code, Some(69), "{went:?}");
    assert!(went.err.contains("\n\nhint: guard a directory with `treelease up DIR`"), "{went:?}");
    assert_eq!(went.out, "");
}

#[test]
fn errors_are_json_on_stderr_where_json_is_wanted() {
    let went = Side::new().run(&["status", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&went.err).unwrap();
    assert_eq!((error["schema"].as_u64(), error["code"].as_str()), (Some(1), Some("unreachable")));
    assert_eq!(error["next"], "treelease up DIR");
    assert_eq!(went.out, "");
    let went = Side::new().run(&["status", "--nonsense", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&went.err).unwrap();
    assert_eq!((error["code"].as_str(), went.code), (Some("usage"), Some(2)));
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_line() {
    let side = Side::new();
    let file = side.configure("side = \"here\"\nendpoint = \"http://127.0.0.1:1\"\n");
    let went = side.run(&["status"]);
    assert_eq!(went.code, Some(78), "{went:?}");
    assert!(went.err.contains("endpoint") && went.err.contains(file.to_str().unwrap()) && went.err.contains('2'), "{went:?}");
    assert_eq!(side.run(&["config", "check"]).code, Some(78));
}

#[test]
fn https_is_refused_with_a_sentence() {
    let side = Side::new();
    side.configure("endpoints = [\"https://127.0.0.1:7420\"]\n");
    let went = side.run(&["tree", "list"]);
    assert_eq!(went.code, Some(78), "{went:?}");
    assert!(went.err.contains("TLS"), "{went:?}");
}

#[test]
fn a_server_that_is_not_there_is_69() {
    let side = Side::new();
    for args in [&["tree", "list"][..], &["status"], &["history", "dev"], &["watch"], &["wait", "dev", "-n"]] {
        let args = [&["--endpoints", NOBODY, "--request-timeout", "500ms"], args].concat();
        let went = side.run(&args);
        assert_eq!((went.code, went.out.as_str()), (Some(69), ""), "{args:?} {went:?}");
        assert!(went.err.contains("127.0.0.1:1"), "{went:?}");
    }
}

#[test]
fn what_was_last_known_is_shown_with_its_age_and_69() {
    let side = Side::new();
    std::fs::write(
        side.runtime().join("status.json"),
        r#"{"schema":1,"side":"here","server":{"reachable":true,"leader":"1","nodes":1,"quorum":true,"secure":false,"revision":3},
            "trees":[{"name":"dev","id":"x","state":"held","mode":"enforce","mounted_at":null,"mine":false,"at_rest":false,"epoch":7,
            "holder":{"side":"pod","host":"dev-0","since":"2026-01-01T00:00:00Z","note":""},"run_start":7,"ttl_ms":15000,
            "expires_in_ms":9000,"writes_until":null,"last_end":"clean","waiters":[],"requests":[],"holds":[],"not_enforced_by":[],
            "fence":null,"roots":[]}],"written_at":"2026-01-01T00:00:00Z"}"#,
    )
    .unwrap();
    let went = side.run(&["status", "--endpoints", NOBODY, "--request-timeout", "500ms"]);
    assert_eq!(went.code, Some(69), "{went:?}");
    assert!(went.out.contains("dev") && went.out.contains("pod (dev-0)"), "{went:?}");
    assert!(went.err.contains("known") && went.err.contains("ago"), "{went:?}");
    let went = side.run(&["status", "-o", "json", "--endpoints", NOBODY, "--request-timeout", "500ms"]);
    let status: serde_json::Value = serde_json::from_str(&went.out).unwrap();
    assert_eq!((status["server"]["reachable"].as_bool(), status["trees"][0]["epoch"].as_u64()), (Some(false), Some(7)));
    let went = side.run(&["status", "--check", "dev", "--endpoints", NOBODY, "--request-timeout", "500ms"]);
    assert_eq!((went.code, went.out.as_str(), went.err.as_str()), (Some(69), "", ""));
}

#[test]
fn a_check_prints_nothing_even_when_nothing_is_known() {
    let went = Side::new().run(&["status", "--check", "dev"]);
    assert_eq!((went.code, went.out.as_str(), went.err.as_str()), (Some(69), "", ""));
}

#[test]
fn a_bad_name_is_wrong_usage() {
    let side = Side::new();
    for args in [
        &["acquire", "dev/.."][..],
        &["tree", "add", "/.."],
        &["status", ".."],
        &["run", "--tree", "a b", "--", "true"],
        &["handoff", "dev", "--to", "../pod"],
        &["up", "--tree", "/.."],
        &["acquire", "dev", "--wait", "5"],
        &["tree", "add", "dev", "mode=loud"],
        &["tree", "set", "dev", "nope=1"],
        &["break", "dev", "--reason", "x", "--yes"],
        &["history", "dev", "--since", "yesterday"],
        &["run", "--tree", "dev"],
        &["nonsense"],
    ] {
        let went = side.run(args);
        assert_eq!((went.code, went.out.as_str()), (Some(2), ""), "{args:?} {went:?}");
        assert!(!went.err.contains("panicked") && went.err.len() > 10, "{args:?} {went:?}");
    }
}

#[test]
fn a_tree_named_by_the_environment_is_checked_too() {
    let side = Side::new();
    let mut command = side.command(&["wait", "-n", "--endpoints", NOBODY, "--request-timeout", "200ms"]);
    command.env("TREELEASE_TREE", "../x");
    let went = common::went(command);
    assert!(matches!(went.code, Some(2 | 69)), "{went:?}");
}

#[test]
fn an_empty_variable_says_nothing() {
    let side = Side::new();
    let mut command = side.command(&["config", "show", "--origin"]);
    command.env("TREELEASE_CONFIG", "").env("TREELEASE_STATE", "").env("TREELEASE_ENDPOINTS", "");
    let went = common::went(command);
    assert_eq!(went.code, Some(0), "{went:?}");
    assert!(went.out.contains("endpoints = []    # default"), "{went:?}");
}

#[test]
fn a_directory_or_socket_of_another_user_is_77() {
    if !rustix::process::geteuid().is_root() {
        return; // only root can give a directory away
    }
    let side = Side::new();
    let runtime = side.runtime();
    std::os::unix::fs::chown(&runtime, Some(12_345), Some(12_345)).unwrap();
    let went = side.run(&["status"]);
    assert_eq!(went.code, Some(77), "{went:?}");
    std::os::unix::fs::chown(&runtime, Some(0), Some(0)).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(runtime.join("socket")).unwrap();
    std::os::unix::fs::chown(runtime.join("socket"), Some(12_345), Some(12_345)).unwrap();
    let went = side.run(&["holds"]);
    assert_eq!(went.code, Some(77), "{went:?}");
    assert!(went.err.contains("socket"), "{went:?}");
}

#[test]
fn a_directory_of_another_cluster_never_gets_a_server() {
    let side = Side::new();
    let dir = side.path("work");
    let cluster = ClusterId::random();
    let root = marker::open_root(&dir).unwrap();
    let mark = Marker::new(
        cluster.clone(),
        TreeId::random(),
        "dev".parse().unwrap(),
        RootId::random(),
        vec!["http://10.0.0.1:7420".into()],
    );
    marker::create(root.as_fd(), &mark).unwrap();
    for args in [&["up"][..], &["up", "."], &["up", "--tree", "mine"]] {
        let went = side.run(args);
        assert_eq!(went.code, Some(78), "{went:?}");
        assert!(went.err.contains(cluster.as_str()) && went.err.contains("treelease join"), "{went:?}");
    }
    assert!(!side.path("state/treelease/server").exists(), "a server was prepared");
    assert!(!side.path("config/treelease/config.toml").exists(), "a mount was configured");
}

#[test]
fn a_marker_that_cannot_be_read_is_78_and_stays_as_it_is() {
    let side = Side::new();
    let path = side.path("work/.treelease-tree");
    std::fs::write(&path, "not a marker\n").unwrap();
    let went = side.run(&["up"]);
    assert_eq!(went.code, Some(78), "{went:?}");
    assert!(went.err.contains(".treelease-tree"), "{went:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a marker\n");
}

#[test]
fn roots_never_overlap() {
    let side = Side::new();
    let root = marker::open_root(&side.path("work")).unwrap();
    let mark = Marker::new(ClusterId::random(), TreeId::random(), "outer".parse().unwrap(), RootId::random(), Vec::new());
    marker::create(root.as_fd(), &mark).unwrap();
    std::fs::create_dir(side.path("work/inner")).unwrap();
    let went = side.run(&["up", "inner"]);
    assert_eq!(went.code, Some(78), "{went:?}");
    assert!(went.err.contains("outer"), "{went:?}");
    assert!(!side.path("work/inner/.treelease-tree").exists());
}

#[test]
fn a_missing_directory_is_66() {
    let side = Side::new();
    let went = side.run(&["up", "missing"]);
    assert_eq!(went.code, Some(66), "{went:?}");
    assert!(went.err.contains("missing"), "{went:?}");
    assert_eq!(side.run(&["up", ".", "--lower", "/nonexistent/dev"]).code, Some(66));
}

#[test]
fn a_directory_whose_name_is_no_tree_name_says_how_to_name_it() {
    let side = Side::new();
    std::fs::create_dir(side.path("work/my dir")).unwrap();
    let went = side.run(&["up", "my dir"]);
    assert_eq!(went.code, Some(2), "{went:?}");
    assert!(went.err.contains("--tree NAME"), "{went:?}");
    assert!(!side.path("state/treelease/server").exists());
}

#[test]
fn with_its_server_away_up_leaves_nothing_behind() {
    let side = Side::new();
    let went = side.run(&["up", "--endpoints", NOBODY, "--request-timeout", "500ms"]);
    assert_eq!(went.code, Some(69), "{went:?}");
    assert!(!side.path("work/.treelease-tree").exists());
    assert!(!side.path("run/treelease/socket").exists());
    assert!(!side.path("config/treelease/config.toml").exists());
}

#[test]
fn in_a_container_a_side_needs_a_name() {
    let side = Side::new();
    let mut command = side.command(&["up"]);
    command.env_remove("TREELEASE_SIDE").env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    let went = common::went(command);
    assert_eq!(went.code, Some(78), "{went:?}");
    assert!(went.err.contains("TREELEASE_SIDE"), "{went:?}");
}

#[test]
fn commands_of_later_versions_say_so() {
    let side = Side::new();
    for args in [&["join", "TOKEN"][..], &["serve", "--listen", "0.0.0.0:7420"], &["side", "add", "pod"]] {
        let went = side.run(args);
        assert_eq!(went.code, Some(78), "{args:?} {went:?}");
        assert!(went.err.contains("comes in a later version"), "{went:?}");
    }
    assert!(!side.run(&["help"]).out.contains("join"), "what is not there is not offered");
}

#[test]
fn a_dry_run_changes_nothing() {
    let side = Side::new();
    let went = side.run(&["up", "--dry-run", "."]);
    assert_eq!(went.code, Some(0), "{went:?}");
    assert!(went.err.contains("\"work\""), "{went:?}");
    assert!(!side.path("state/treelease").exists() && !side.path("work/.treelease-tree").exists());
}

#[test]
fn the_exit_codes_are_those_of_the_contract() {
    let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
    assert_eq!(codes, [0, 1, 2, 66, 69, 70, 73, 74, 75, 77, 78, 79, 126, 127]);
    let went = Side::new().run(&["help", "exit-codes"]);
    assert_eq!(went.out.lines().count(), codes.len());
}

#[test]
fn help_completion_and_version_need_nothing() {
    let side = Side::new();
    side.configure("broken");
    for args in [
        &["help"][..],
        &["help", "environment"],
        &["help", "files"],
        &["help", "tree", "add"],
        &["completion", "bash"],
        &["completion", "zsh"],
        &["completion", "fish"],
        &["version"],
        &["--version"],
        &["up", "--help"],
    ] {
        let went = side.run(args);
        assert_eq!((went.code, went.err.as_str()), (Some(0), ""), "{args:?} {went:?}");
        assert!(went.out.len() > 10 && !went.out.contains('\x1b'), "{args:?} {went:?}");
    }
    let version: serde_json::Value = serde_json::from_str(&side.run(&["version", "-o", "json"]).out).unwrap();
    assert_eq!((version["schema"].as_u64(), version["command"].as_str()), (Some(1), Some(env!("CARGO_PKG_VERSION"))));
    assert_eq!(side.run(&["help", "nonsense"]).code, Some(2));
}

#[test]
fn the_configuration_in_force_is_shown_with_its_origin() {
    let side = Side::new();
    let file = side.configure("endpoints = [\"http://127.0.0.1:7420\"]\nttl = \"20s\"\n");
    assert_eq!(side.run(&["config", "path"]).out.trim(), file.to_str().unwrap());
    let went = side.run(&["config", "show", "--origin"]);
    assert!(went.out.contains("ttl = \"20s\"    # file"), "{went:?}");
    assert!(went.out.contains("side = \"here\"    # flag or variable"), "{went:?}");
    assert_eq!(side.run(&["config", "check"]).code, Some(0));
}

#[test]
fn logs_shows_what_the_daemon_wrote() {
    let side = Side::new();
    assert_eq!(side.run(&["logs"]).code, Some(66));
    let log = side.path("state/treelease/log");
    std::fs::create_dir_all(&log).unwrap();
    std::fs::write(log.join("guard.log"), "one\ntwo\n").unwrap();
    let went = side.run(&["logs", "-n", "1"]);
    assert_eq!(went.code, Some(0), "{went:?}");
    assert!(went.out.ends_with("guard.log <==\ntwo\n"), "{went:?}");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let side = Side::new();
    let mut command = side.command(&["help", "reference"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
}
