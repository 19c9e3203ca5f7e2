//! What people get wrong, and what is not there: each is a clear sentence and the right exit code, nothing is lost, nothing panics.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use treelease_tests::hosts::{Server, Side, World, finish, quick};

fn sh(script: &str) {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

fn one_host(world: &World) -> (Server, Side) {
    let server = world.server();
    let side = world.side("workstation", &server);
    world.tree(&side, "dev", &quick(&[]));
    (server, side)
}

fn add_to_config(side: &Side, line: &str) {
    let text = std::fs::read_to_string(side.config()).unwrap();
    std::fs::write(side.config(), format!("{line}\n{text}")).unwrap();
}

#[test]
fn an_unknown_key_names_the_key_the_file_and_the_line() {
    let world = World::new();
    let side = world.side_at("workstation", &[]);
    add_to_config(&side, "# a comment\nendpoint = \"http://127.0.0.1:1\"");
    side.run(&["status"]).refused(78, &["`endpoint`", "config.toml", "2"]);
    side.run(&["mount", "dev"]).refused(78, &["`endpoint`"]);
    assert_eq!(side.daemon(), None);
}

#[test]
fn a_server_that_is_not_there_is_69_and_a_tree_that_is_not_there_66() {
    let world = World::new();
    let nobody = world.side_at("workstation", &["http://127.0.0.1:1".into()]);
    nobody.run(&["--request-timeout", "500ms", "tree", "list"]).refused(69, &["127.0.0.1:1"]);
    let server = world.server();
    let side = world.side("pod", &server);
    side.run(&["tree", "show", "nope"]).refused(66, &["nope"]);
    side.run(&["history", "nope"]).refused(66, &["nope"]);
    side.run(&["acquire", "nope", "-n"]).refused(66, &["nope"]);
    side.run(&["acquire"]).refused(66, &["treelease up"]);
}

#[test]
fn a_tree_name_with_a_path_in_it_is_wrong_usage_and_an_unknown_policy_key_is_named() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    for bad in ["a/..", "..", "/", "a b", ""] {
        side.run(&["tree", "add", bad]).refused(2, &["tree name"]);
        side.run(&["mount", bad, "--lower", "/tmp"]).refused(2, &["tree name"]);
    }
    side.run(&["tree", "set", "dev", "colour=blue"]).refused(2, &["colour"]);
    side.run(&["tree", "set", "dev", "idle=ten"]).refused(2, &["ten"]);
    side.run(&["tree", "set", "dev", "fence=exec:nas"]).refused(78, &["nas"]);
    side.run(&["tree", "add", "dev"]).refused(78, &["dev"]);
}

#[test]
fn a_lower_directory_that_is_not_there_is_66_and_a_mount_point_with_something_in_it_73() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    side.try_mount("dev", Path::new("/no/such/place"), &[]).refused(66, &["/no/such/place"]);
    std::fs::create_dir_all(side.at("dev")).unwrap();
    std::fs::write(side.at("dev").join("precious"), "x").unwrap();
    side.try_mount("dev", &world.lower("dev"), &[]).refused(73, &["not empty"]);
    assert_eq!(std::fs::read_to_string(side.at("dev").join("precious")).unwrap(), "x");
}

#[test]
fn an_empty_volume_where_a_tree_should_be_is_not_mounted() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    let empty = world.directory("empty");
    side.try_mount("dev", &empty, &[]).refused(78, &["--adopt"]);
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0, "and nothing was made in it");
}

#[test]
fn a_copied_tree_is_refused_with_both_ways_out() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    let copy = world.path("copy");
    sh(&format!("cp -a {} {}", world.lower("dev").display(), copy.display()));
    side.try_mount("dev", &copy, &[]).refused(78, &["cop"]);
}

#[test]
fn a_damaged_marker_is_not_overwritten() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    let marker = world.lower("dev").join(".treelease-tree");
    let mode = std::fs::metadata(&marker).unwrap().permissions();
    std::fs::set_permissions(&marker, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&marker, "{ torn").unwrap();
    std::fs::set_permissions(&marker, mode).unwrap();
    side.try_mount("dev", &world.lower("dev"), &[]).refused(74, &[".treelease-tree"]);
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "{ torn");
}

#[test]
fn overlapping_roots_are_refused() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    let below = world.lower("dev").join("sub/deep");
    std::fs::create_dir_all(&below).unwrap();
    side.run(&["tree", "add", "inner", "--root", below.to_str().unwrap()]).refused(78, &["dev"]);
    assert!(!below.join(".treelease-tree").exists());
}

#[test]
fn a_process_that_writes_in_the_raw_tree_stops_a_mount_and_is_named() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    let open = std::fs::File::create(world.lower("dev").join("open")).unwrap();
    let pid = std::process::id().to_string();
    side.try_mount("dev", &world.lower("dev"), &[]).refused(75, &[&pid]);
    side.try_mount("dev", &world.lower("dev"), &["--force"]).expect(0);
    drop(open);
}

#[test]
fn a_mount_that_is_busy_is_not_taken_away_and_the_processes_are_named() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    side.mount("dev", &world.lower("dev"));
    let inside = std::fs::File::open(side.at("dev")).unwrap();
    side.run(&["umount", "dev"]).refused(75, &[&std::process::id().to_string()]);
    drop(inside);
    side.ok(&["umount", "dev"]);
}

#[test]
fn without_dev_fuse_a_mount_is_73_and_says_what_is_missing() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    std::fs::create_dir_all(side.at("dev")).unwrap();
    let args = format!(
        "{} mount dev --lower {} --at {}",
        treelease_tests::hosts::executable("treelease").display(),
        world.lower("dev").display(),
        side.at("dev").display()
    );
    let mut command = side.command("unshare");
    command.args(["-m", "sh", "-c"]).arg(format!(
        "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && exec {args}"
    ));
    finish(command).refused(73, &["/dev/fuse"]);
}

#[test]
fn a_runtime_directory_or_a_socket_of_another_user_is_77() {
    let world = World::new();
    let server = world.server();
    let side = world.side("workstation", &server);
    sh(&format!("chown 65534 {}", side.dir().join("run").display()));
    side.run(&["holds"]).refused(77, &["run"]);
    side.try_mount("dev", &world.directory("lower-dev"), &[]).refused(77, &["run"]);
    assert_eq!(side.daemon(), None);
}

#[test]
fn a_taken_port_is_73_and_without_insecure_or_beyond_loopback_a_server_does_not_start() {
    let world = World::new();
    let server = world.server();
    Server::fails(&world.directory("other"), server.address()).refused(73, &[server.address()]);
    Server::fails(&world.directory("other"), "0.0.0.0:0").refused(78, &["--insecure-remote"]);
    let mut plain = side_less("treelease-server");
    plain.args(["--node-id", "1", "--listen", "127.0.0.1:0", "--data-dir"]).arg(world.path("third"));
    finish(plain).refused(78, &["--insecure"]);
    let mut same = Server::command(server.dir(), "127.0.0.1:0");
    same.env("TREELEASE_TEST_WORLD", world.dir());
    finish(same).refused(73, &["data"]);
}

fn side_less(program: &str) -> Command {
    Command::new(treelease_tests::hosts::executable(program))
}

#[test]
fn a_damaged_data_directory_is_74_and_is_left_as_it_is() {
    let world = World::new();
    let mut server = world.server();
    let side = world.side("workstation", &server);
    side.ok(&["tree", "add", "dev"]);
    server.kill();
    let data = server.dir().join("data");
    let mut damaged = 0;
    let mut dirs = vec![data.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() && entry.metadata().unwrap().len() > 0 && entry.file_name() != "lock" {
                std::fs::write(entry.path(), vec![0xa5; entry.metadata().unwrap().len() as usize]).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0, "there was something to damage");
    Server::fails(server.dir(), "127.0.0.1:0").refused(74, &["data"]);
}

#[test]
fn a_data_directory_that_lost_its_log_is_not_taken_for_an_empty_one() {
    let world = World::new();
    let mut server = world.server();
    let side = world.side("workstation", &server);
    side.ok(&["tree", "add", "dev"]);
    server.kill();
    let data = server.dir().join("data");
    // Everything but small files at the top (identity, lock): as after a volume that came back without its database.
    for entry in std::fs::read_dir(&data).unwrap().flatten().filter(|e| e.file_type().unwrap().is_dir()) {
        std::fs::remove_dir_all(entry.path()).unwrap();
    }
    Server::fails(server.dir(), "127.0.0.1:0").refused(74, &["data"]);
}

#[test]
fn an_error_as_json_has_its_code_and_its_message() {
    let world = World::new();
    let (_server, side) = one_host(&world);
    let refused = side.run(&["history", "nope", "-o", "json"]).expect(66);
    let error: serde_json::Value = serde_json::from_str(refused.stderr.trim()).unwrap_or_else(|e| panic!("{e}\n{refused}"));
    assert_eq!((&error["schema"], &error["code"]), (&1.into(), &"not_found".into()), "{error}");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("nope")), "{error}");
}
