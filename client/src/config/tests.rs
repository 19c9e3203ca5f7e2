//! One fault at a time: each names key, file and line, and is 78. And where things lie.

use std::os::unix::fs::PermissionsExt;

use super::*;

struct Home {
    dir: tempfile::TempDir,
    env: Env,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let env = Env {
        home: Some(at("home")),
        xdg_config_home: Some(at("config")),
        xdg_state_home: Some(at("state")),
        xdg_runtime_dir: Some(at("run")),
        system_config: at("etc/config.toml"),
        hostname: Some("laptop.example".into()),
        container: false,
        uid: rustix::process::geteuid().as_raw(),
    };
    for name in ["config/treelease", "run", "etc"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    Home { dir, env }
}

impl Home {
    fn file(&self) -> PathBuf {
        self.dir.path().join("config/treelease/config.toml")
    }
    fn write(&self, text: &str) -> &Self {
        std::fs::write(self.file(), text).unwrap();
        self
    }
    fn load(&self) -> Result<Config, Failure> {
        Config::load(&Overrides::default(), &self.env)
    }
}

const WHOLE: &str = r#"
side = "workstation"
endpoints = ["http://lease-0.example:7420", "http://10.0.0.1"]
ttl = "20s"
token_file = "token"
[[mount]]
tree = "dev"
lower = "/mnt/nas/dev"
[[mount]]
tree = "other"
lower = "lower"
at = "./at/"
"#;

#[test]
fn a_whole_file_becomes_checked_words_with_paths_relative_to_it() {
    let home = home();
    let config = home.write(WHOLE).load().unwrap();
    assert_eq!(config.side().unwrap().as_str(), "workstation");
    assert_eq!(config.endpoints[1].to_string(), "http://10.0.0.1:7420");
    assert_eq!(config.ttl, Ttl::new(Duration::from_secs(20)));
    let beside = home.file().parent().unwrap().to_path_buf();
    assert_eq!(config.token_file, Some(beside.join("token")));
    assert_eq!(config.mounts[0].at, Path::new("/mnt/nas/dev"), "over itself");
    assert_eq!((&config.mounts[1].lower, &config.mounts[1].at), (&beside.join("lower"), &beside.join("at")));
    assert_eq!(config.origins["side"], Origin::File);
    assert_eq!(config.origins["state_dir"], Origin::Default);
}

#[test]
fn each_fault_is_78_and_names_key_file_and_line() {
    let faults: &[(&str, usize, &str)] = &[
        ("side = \"a\"\nsides = 1\n", 2, "unknown key `sides`"),
        ("\n[[mount]]\ntree = \"a\"\nlower = \"/a\"\nupper = \"/b\"\n", 5, "unknown key `upper`"),
        ("[tls]\ncat = 1\n", 2, "unknown key `cat`"),
        ("side = \"a/..\"\n", 1, "`side`"),
        ("side = 5\n", 1, "string"),
        ("endpoints = [\n  \"http://a\",\n  \"b:1\",\n]\n", 3, "http://"),
        ("endpoints = [\"https://a:1\"]\n", 1, "https needs TLS"),
        ("\n[tls]\nca = \"x\"\n", 2, "https needs TLS"),
        ("ttl = \"15\"\n", 1, "`ttl`"),
        ("ttl = \"1s\"\n", 1, "between 2s and 1h"),
        ("token_file = \"~/x\"\n", 1, "`~`"),
        ("[[mount]]\nlower = \"/a\"\n", 1, "tree"),
        ("[[mount]]\ntree = \"../x\"\nlower = \"/a\"\n", 2, "`mount.tree`"),
        ("[[mount]]\ntree = \"x\"\nlower = \"\"\n", 3, "`mount.lower`"),
        ("[[mount]]\ntree = \"x\"\nlower = \"/a\"\n[[mount]]\ntree = \"x\"\nlower = \"/b\"\n", 5, "twice"),
        ("[[mount]]\ntree = \"x\"\nlower = \"/a\"\n[[mount]]\ntree = \"y\"\nlower = \"/a/b\"\n", 6, "overlap"),
        ("side = \"a\nttl = 1\n", 1, ""),
        ("side = \"a\"\nside = \"b\"\n", 2, ""),
    ];
    for (text, line, says) in faults {
        let home = home();
        let failure = home.write(text).load().expect_err(text);
        assert_eq!(failure.exit().code(), 78, "{text}");
        let place = format!("{}:{line}: ", home.file().display());
        assert!(failure.message.starts_with(&place), "{text:?}: {}", failure.message);
        assert!(failure.message.contains(says), "{text:?}: {}", failure.message);
    }
}

#[test]
fn a_flag_comes_before_the_file() {
    let home = home();
    home.write(WHOLE);
    let given = Overrides {
        side: Some("pod".into()),
        endpoints: vec!["http://h:1".into()],
        state_dir: Some("/s".into()),
        runtime_dir: Some("/r".into()),
        ..Overrides::default()
    };
    let config = Config::load(&given, &home.env).unwrap();
    assert_eq!(config.side().unwrap().as_str(), "pod");
    assert_eq!(config.endpoints.len(), 1);
    assert_eq!((config.state_dir.as_path(), config.socket().as_path()), (Path::new("/s"), Path::new("/r/socket")));
    assert_eq!(config.origins["endpoints"], Origin::Given);
    let tls = Overrides { endpoints: vec!["https://h:1".into()], ..given };
    assert!(Config::load(&tls, &home.env).unwrap_err().message.contains(written::NO_TLS));
}

#[test]
fn the_machines_file_is_read_where_the_user_has_none() {
    let home = home();
    assert_eq!(home.load().unwrap().file, None);
    std::fs::write(&home.env.system_config, "side = \"machine\"\n").unwrap();
    assert_eq!(home.load().unwrap().side().unwrap().as_str(), "machine");
    home.write("side = \"mine\"\n");
    assert_eq!(home.load().unwrap().side().unwrap().as_str(), "mine");
}

#[test]
fn a_named_file_must_exist_or_be_makeable() {
    let home = home();
    let named = |path: PathBuf| Config::load(&Overrides { config: Some(path), ..Overrides::default() }, &home.env);
    assert_eq!(named(home.dir.path().join("no/such/file")).unwrap_err().exit().code(), 78);
    let fresh = named(home.dir.path().join("fresh.toml")).unwrap();
    assert!(fresh.notes.iter().any(|note| note.contains("does not exist yet")), "{:?}", fresh.notes);
}

#[test]
fn the_host_name_is_the_side_but_not_in_a_container() {
    let mut home = home();
    assert_eq!(home.load().unwrap().side().unwrap().as_str(), "laptop.example");
    home.env.container = true;
    let failure = home.load().unwrap().side().unwrap_err();
    assert_eq!(failure.exit().code(), 78);
    assert!(failure.hints[0].contains("TREELEASE_SIDE"));
}

#[test]
fn state_never_lies_in_a_guarded_tree() {
    let home = home();
    let state = home.dir.path().join("state");
    home.write(&format!("[[mount]]\ntree = \"x\"\nlower = {state:?}\n"));
    let config = home.load().unwrap();
    assert_eq!(config.state_dir, Path::new(&format!("/var/tmp/treelease-{}", home.env.uid)));
    assert!(config.notes[0].contains("guarded tree `x`"), "{:?}", config.notes);

    home.write("");
    let mut config = home.load().unwrap();
    config.about_to_guard(home.dir.path()).unwrap();
    assert!(config.state_dir.starts_with("/var/tmp") && config.notes.len() == 1);
    let mut config = home.load().unwrap();
    std::fs::create_dir_all(config.ensure_state_dir().unwrap().join("log")).unwrap();
    assert_eq!(config.about_to_guard(home.dir.path()).unwrap_err().exit().code(), 78, "something would be left behind");
}

#[test]
fn directories_are_made_for_this_user_alone() {
    let home = home();
    let config = home.load().unwrap();
    for dir in [config.ensure_state_dir().unwrap(), config.ensure_runtime_dir().unwrap()] {
        assert_eq!(std::fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
    }
    std::fs::set_permissions(&config.runtime_dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(config.ensure_runtime_dir().unwrap_err().exit().code(), 77);
}

#[test]
fn another_users_directory_or_socket_is_77() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let home = home();
    let config = home.load().unwrap();
    config.ensure_runtime_dir().unwrap();
    std::fs::write(config.socket(), "").unwrap();
    assert!(config.check_runtime_owner().is_ok());
    nix::unistd::chown(&config.socket(), Some(1234.into()), None).unwrap();
    let failure = config.check_runtime_owner().unwrap_err();
    assert_eq!(failure.exit().code(), 77);
    assert!(failure.message.contains("uid 1234"), "{failure}");
    nix::unistd::chown(&config.runtime_dir, Some(1234.into()), None).unwrap();
    assert_eq!(config.ensure_runtime_dir().unwrap_err().exit().code(), 77);
}

#[test]
fn a_socket_path_that_the_kernel_cannot_take_is_78() {
    let home = home();
    let given = Overrides { runtime_dir: Some(format!("/tmp/{}", "x".repeat(110)).into()), ..Overrides::default() };
    assert_eq!(Config::load(&given, &home.env).unwrap_err().exit().code(), 78);
}

fn mount(tree: &str, lower: &str, at: &str) -> MountConfig {
    MountConfig { tree: tree.parse().unwrap(), lower: lower.into(), at: at.into() }
}

#[test]
fn a_mount_is_written_and_all_else_stays() {
    let home = home();
    let text = "# mine\nside = \"a\"   # here\n\n[[mount]]\ntree = \"one\" # first\nlower = \"/one\"\n";
    let mut config = home.write(text).load().unwrap();
    config.add_mount(&mount("two", "/two", "/at two")).unwrap();
    config.add_mount(&mount("one", "/one", "/elsewhere")).unwrap();
    let now = std::fs::read_to_string(home.file()).unwrap();
    assert!(now.starts_with("# mine\nside = \"a\"   # here\n"), "{now}");
    let again = home.load().unwrap();
    assert_eq!(again.mounts, [mount("one", "/one", "/elsewhere"), mount("two", "/two", "/at two")]);
    assert!(config.remove_mount(&"one".parse().unwrap()).unwrap());
    assert!(!config.remove_mount(&"one".parse().unwrap()).unwrap());
    assert!(config.remove_mount(&"two".parse().unwrap()).unwrap());
    assert_eq!(home.load().unwrap().mounts, []);
    assert!(std::fs::read_to_string(home.file()).unwrap().contains("# here"));
    assert_eq!(std::fs::read_dir(home.file().parent().unwrap()).unwrap().count(), 1, "no leftovers");
}

#[test]
fn the_first_mount_makes_the_file() {
    let home = home();
    std::fs::remove_dir_all(home.dir.path().join("config")).unwrap();
    let mut config = home.load().unwrap();
    config.add_mount(&mount("dev", "/dev-tree", "/dev-tree")).unwrap();
    assert_eq!(std::fs::read_to_string(home.file()).unwrap().trim(), "[[mount]]\ntree = \"dev\"\nlower = \"/dev-tree\"");
    assert_eq!(home.load().unwrap().mounts.len(), 1);
}

#[test]
fn a_link_to_the_file_stays_a_link() {
    let home = home();
    let real = home.dir.path().join("dotfiles.toml");
    std::fs::write(&real, "side = \"a\"\n").unwrap();
    std::os::unix::fs::symlink(&real, home.file()).unwrap();
    home.load().unwrap().add_mount(&mount("dev", "/x", "/x")).unwrap();
    assert!(home.file().is_symlink());
    assert!(std::fs::read_to_string(real).unwrap().contains("[[mount]]"));
}

#[test]
fn a_token_is_the_first_line_of_its_file() {
    let home = home();
    let file = home.dir.path().join("token");
    assert_eq!(read_token(&file).unwrap_err().exit().code(), 78);
    std::fs::write(&file, "abc\n").unwrap();
    assert_eq!(read_token(&file).unwrap(), "abc");
    std::fs::write(&file, "\n").unwrap();
    assert_eq!(read_token(&file).unwrap_err().exit().code(), 78);
}
