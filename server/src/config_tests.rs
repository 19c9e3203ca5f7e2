//! What is wrong with a configuration is named, with the exit code of CLI.md.

use super::*;

fn parse(args: &[&str]) -> Result<Config> {
    let base = ["treelease-server", "--node-id", "1", "--data-dir", "/tmp/x"];
    let flags = Flags::try_parse_from(base.iter().chain(args)).expect("flags that clap takes");
    Config::load(flags)
}

fn refused(args: &[&str]) -> Failure {
    parse(args).unwrap_err()
}

fn from_file(content: &str) -> (tempfile::TempDir, Result<Config>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.toml");
    std::fs::write(&path, content).unwrap();
    let flags = Flags { config: Some(path), ..Flags::default() };
    let config = Config::load(flags);
    (dir, config)
}

#[test]
fn one_node_on_loopback_needs_insecure_and_says_so() {
    assert_eq!(refused(&[]).code, Code::Config);
    assert!(refused(&[]).message.contains("--insecure"));
    assert!(refused(&["--insecure", "--listen", "0.0.0.0:0"]).message.contains("--insecure-remote"));
    let config = parse(&["--insecure"]).unwrap();
    assert_eq!(config.listen, vec![LISTEN.parse().unwrap()]);
    parse(&["--insecure-remote", "--listen", "0.0.0.0:0"]).unwrap();
}

#[test]
fn what_is_not_in_this_version_is_refused_by_name() {
    for (args, says) in [(&["--store", "paper"][..], "no such store"), (&["--admin", "9100"], "HOST:PORT")] {
        let refused = refused(&[args, &["--insecure"]].concat());
        assert_eq!(refused.code, Code::Config);
        assert!(refused.message.contains(says), "{refused}");
    }
}

#[test]
fn bad_values_are_named_with_what_would_be_right() {
    for (args, says) in [
        (&["--listen", "nonsense"][..], "HOST:PORT"),
        (&["--listen", ":1"], "HOST:PORT"),
        (&["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (&["--advertise", "x"], "HOST:PORT"),
        (&["--heartbeat", "soon"], "500ms"),
        (&["--heartbeat", "1ms"], "10ms"),
        (&["--election-timeout", "1s"], "MIN..MAX"),
        (&["--election-timeout", "1s..1s"], "MAX more than MIN"),
        (&["--heartbeat", "1s"], "three heartbeats"),
        (&["--peer", "host:7420"], "ID=HOST:PORT"),
        (&["--peer", "2=host"], "HOST:PORT"),
        (&["--peer", "0=host:1"], "1 or more"),
        (&["--peer", "2=host:0"], "port"),
        (&["--peer", "2=host:1", "--peer", "2=host:2"], "twice"),
        (&["--peer", "2=host:1", "--peer", "3=host:1"], "twice"),
        (&["--peer", "2=host:1", "--listen", "127.0.0.1:0"], "--advertise"),
        (&["--peer", "2=host:1", "--peer", "1=host:3", "--advertise", "host:4"], "another address"),
        (&["--token-file", "/nowhere/token"], "/nowhere/token"),
        (&["--config", "/nowhere/file"], "/nowhere/file"),
    ] {
        let refused = refused(&[args, &["--insecure"]].concat());
        assert_eq!(refused.code, Code::Config, "{refused}");
        assert!(refused.message.contains(says), "{refused}");
    }
}

#[test]
fn peers_are_listed_with_or_without_the_node_itself() {
    let three = ["--insecure", "--listen", "127.0.0.1:7421", "--peer", "2=b:7420", "--peer", "3=c:7420"];
    let config = parse(&three).unwrap();
    assert_eq!(config.peers, BTreeMap::from([(2, "b:7420".to_owned()), (3, "c:7420".to_owned())]));
    assert_eq!(config.advertise.as_deref(), Some("127.0.0.1:7421"));
    let own = parse(&[&three[..], &["--peer", "1=a:7420"]].concat()).unwrap();
    assert_eq!((own.peers, own.advertise.as_deref()), (config.peers, Some("a:7420")));
}

#[test]
fn a_missing_node_id_or_data_dir_is_wrong_usage() {
    let flags = Flags { insecure: true, ..Flags::default() };
    assert_eq!(Config::load(flags.clone()).unwrap_err().code, Code::Usage);
    let zero = Flags { node_id: Some(0), ..flags.clone() };
    assert_eq!(Config::load(zero).unwrap_err().code, Code::Usage);
    let no_dir = Flags { node_id: Some(1), ..flags };
    assert_eq!(Config::load(no_dir).unwrap_err().code, Code::Usage);
}

#[test]
fn an_unknown_key_is_named_with_file_and_line() {
    let (dir, refused) = from_file("node_id = 1\ninsecure = true\nlisten_on = \"x\"\n");
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, Code::Config);
    let place = format!("{}:3:", dir.path().join("server.toml").display());
    assert!(refused.message.starts_with(&place), "{refused}");
    assert!(refused.message.contains("unknown key `listen_on`"), "{refused}");
    let (_dir, refused) = from_file("node_id = \n");
    assert!(refused.unwrap_err().message.contains("server.toml:1:"));
}

#[test]
fn a_file_gives_what_flags_do_and_its_paths_are_relative_to_it() {
    let (dir, config) = from_file(
        "node_id = 3\ndata_dir = \"data\"\ninsecure = true\nheartbeat = \"50ms\"\nelection_timeout = \"200ms..300ms\"\n",
    );
    let config = config.unwrap();
    assert_eq!(config.node_id, 3);
    assert_eq!(config.data_dir, dir.path().join("data"));
    assert_eq!(config.pace.heartbeat, Duration::from_millis(50));
    assert_eq!(config.pace.election_max, Duration::from_millis(300));
}

#[test]
fn a_token_is_read_trimmed_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    let config = parse(&["--insecure", "--token-file", path.to_str().unwrap()]).unwrap();
    assert_eq!(config.token, Some(Token::new("s3cret")));
    assert!(!format!("{config:?}").contains("s3cret"));
    std::fs::write(&path, "\n").unwrap();
    assert_eq!(refused(&["--insecure", "--token-file", path.to_str().unwrap()]).code, Code::Config);
}

#[test]
fn a_token_file_may_hold_several_while_a_token_is_being_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        parse(&["--insecure", "--token-file", path.to_str().unwrap()])
    };
    let config = read("first \n\n  second\n").unwrap();
    assert_eq!(config.token, Some(Token::new("first")), "the one that is shown to other nodes");
    assert_eq!(config.tokens(), [Token::new("first"), Token::new("second")]);
    assert_eq!(config.token_file.as_deref(), Some(path.as_path()));
    for bad in ["first\ntwo words\n", "first\nsch\u{f6}n\n", &"x".repeat(TOKEN_MAX as usize + 1)] {
        assert_eq!(read(bad).unwrap_err().code, Code::Config, "{bad}");
    }
}

#[test]
fn the_logs_filter_and_reflection_are_read_from_either_place_and_a_flag_counts_more() {
    let (_dir, config) = from_file("node_id = 1\ndata_dir = \"d\"\ninsecure = true\nlog = \"warn\"\nreflection = true\n");
    let config = config.unwrap();
    assert_eq!((config.log.as_deref(), config.reflection), (Some("warn"), true));
    let config = parse(&["--insecure", "--log", "debug,openraft=off", "--reflection"]).unwrap();
    assert_eq!((config.log.as_deref(), config.reflection), (Some("debug,openraft=off"), true));
    let refused = refused(&["--insecure", "--log", "a=b=c"]);
    assert_eq!(refused.code, Code::Config);
    assert!(refused.message.contains("a=b=c") && refused.message.contains("info,openraft=warn"), "{refused}");
}
