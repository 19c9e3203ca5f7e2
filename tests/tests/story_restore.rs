//! When a whole cluster is lost: a backup in a new one, sides that follow it, and epochs that never go back. And what happens
//! where somebody puts back a server's old disk instead.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use treelease_tests::hosts::{Server, Side, World, quick, wait_for};

/// For anything that a daemon or a server does by itself.
const LIMIT: Duration = Duration::from_secs(60);
/// As the server's `LIFT`.
const LIFT: u64 = 1_000_000_000;

/// A server whose tree `dev` the side has mounted and written.
fn one_side(world: &World) -> (Server, Side) {
    let server = world.server();
    let side = world.side("workstation", &server);
    world.tree(&side, "dev", &quick(&[]));
    side.mount("dev", &world.lower("dev"));
    (server, side)
}

/// Takes the tree, writes, gives it back: one more epoch.
fn turn(side: &Side, text: &str) {
    side.ok(&["acquire", "dev"]);
    // On a starved machine a short lease may run out between the two, and come back.
    wait_for(LIMIT, "the write goes through", || std::fs::write(side.at("dev").join("file"), text).is_ok());
    side.ok(&["release", "dev", "--now"]);
}

fn epoch(side: &Side) -> u64 {
    side.tree_status("dev")["epoch"].as_u64().expect("a number")
}

/// The tree's state; nothing while the side has read no table yet.
fn stands(side: &Side) -> String {
    let status = side.status();
    let trees = status["trees"].as_array().into_iter().flatten();
    trees.filter(|tree| tree["name"] == "dev").filter_map(|tree| tree["state"].as_str()).collect()
}

/// The greatest stamp on the storage.
fn stamped(lower: &Path) -> u64 {
    let names = std::fs::read_dir(lower).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix(".treelease-tree.")?.parse().ok()).max().unwrap_or(0)
}

fn cluster_of(side: &Side) -> String {
    side.ok(&["cluster", "status", "-o", "json"]).json()["cluster"].as_str().expect("an id").to_owned()
}

#[test]
fn i1_a_restored_cluster_goes_on_above_every_epoch_and_its_sides_follow_by_their_users_word() {
    let world = World::new();
    let (mut old, side) = one_side(&world);
    turn(&side, "one");
    let file = world.path("backup");
    let backup = file.to_str().unwrap();
    let said = side.run(&["cluster", "backup", backup, "-o", "json"]).expect(0);
    assert_eq!(said.json()["trees"], 1);
    side.run(&["cluster", "backup", backup]).refused(73, &["already"]);
    // What the backup does not know.
    for text in ["two", "three", "four"] {
        turn(&side, text);
    }
    let (before, from) = (epoch(&side), cluster_of(&side));
    old.kill();

    let new = Server::start_at(world.directory("server-2"), old.address());
    // Bad files first: nothing of them arrives.
    let whole = std::fs::read_to_string(&file).unwrap();
    let bad = world.path("bad");
    for (content, says) in
        [(&whole[..whole.len() / 2], "cut short"), (&whole.replacen("dev", "dew", 1), "altered"), ("{}", "no backup")]
    {
        std::fs::write(&bad, content).unwrap();
        side.run(&["cluster", "restore", bad.to_str().unwrap()]).refused(74, &[says]);
    }
    assert!(side.ok(&["tree", "list"]).stdout.lines().all(|line| !line.contains("dev")));
    side.ok(&["cluster", "restore", backup]);
    side.run(&["cluster", "restore", backup]).refused(73, &["not empty"]);

    // The side knows the old one only, and says what to type.
    let name = cluster_of(&side);
    assert_ne!(name, from);
    assert_eq!(side.ok(&["cluster", "status", "-o", "json"]).json()["predecessors"], serde_json::json!([from]));
    wait_for(LIMIT, "the side says that the cluster is another one", || {
        side.status()["server"]["trouble"].as_str().is_some_and(|why| why.contains(&name))
    });
    std::fs::write(side.at("dev").join("file"), "nobody may").unwrap_err();
    side.run(&["follow", &from, "--reason", "wrong"]).refused(78, &[&name]);
    side.ok(&["follow", &name, "--reason", "the old nodes are gone"]);
    wait_for(LIMIT, "the side sees the tree cooling", || stands(&side) == "cooling");
    side.run(&["acquire", "dev", "-n"]).refused(75, &["restored"]);
    let lifted = epoch(&side);
    assert!(lifted > before && lifted >= LIFT, "{lifted}");

    side.ok(&["fence", "confirm", "dev", "--epoch", &lifted.to_string(), "--reason", "the old nodes are gone"]);
    turn(&side, "five");
    assert_eq!(std::fs::read_to_string(world.lower("dev").join("file")).unwrap(), "five");
    assert!(stamped(&world.lower("dev")) > lifted);
    let stamp = world.lower("dev").join(format!(".treelease-tree.{}", stamped(&world.lower("dev"))));
    assert!(std::fs::read_to_string(stamp).unwrap().contains(&name), "the stamp is the new cluster's");
    let history = side.ok(&["history", "dev", "-o", "json"]).stdout;
    assert!(history.contains("restored") && history.contains(&from), "{history}");

    // Another side that was of the old cluster's, and one that never was of any.
    let fresh = world.side("pod", &new);
    fresh.try_mount("dev", &world.lower("dev"), &[]).refused(78, &["follow"]);
    fresh.ok(&["follow", &name, "--reason", "the old nodes are gone"]);
    fresh.mount("dev", &world.lower("dev"));
    turn(&fresh, "six");
    wait_for(LIMIT, "the other side sees it", || {
        std::fs::read_to_string(side.file("dev", "file")).is_ok_and(|text| text == "six")
    });
}

#[test]
fn a_backup_of_one_node_goes_into_three_and_a_backup_of_three_is_the_leaders() {
    let world = World::new();
    let (mut old, side) = one_side(&world);
    let globs = format!("sealed_read={}", "a".repeat(1500));
    for n in 0..30 {
        side.ok(&["tree", "add", &format!("tree-{n}"), &globs]);
    }
    let file = world.path("backup");
    side.ok(&["cluster", "backup", file.to_str().unwrap()]);
    assert!(std::fs::metadata(&file).unwrap().len() > 32 << 10, "more than one piece");
    old.stop();

    let cluster = world.cluster();
    let operator = world.side_at("operator", &cluster.urls());
    operator.ok(&["cluster", "restore", file.to_str().unwrap()]);
    for (n, url) in cluster.urls().into_iter().enumerate() {
        let look = world.side_at(&format!("look-{n}"), &[url]);
        wait_for(LIMIT, "each node has all trees", || {
            let trees = look.ok(&["tree", "list", "-o", "json"]).json()["trees"].clone();
            let trees = trees.as_array().expect("a list");
            trees.len() == 31 && trees.iter().all(|t| t["epoch"].as_u64() >= Some(LIFT) && t["state"] == "cooling")
        });
    }
    // Whichever node is asked first.
    let again = world.path("again");
    let said = operator.run(&["cluster", "backup", again.to_str().unwrap(), "-o", "json"]).expect(0);
    assert_eq!((said.json()["trees"].as_u64(), said.json()["cluster"].as_str()), (Some(31), Some(&*cluster_of(&operator))));
}

/// One backup in two clusters: both know the tree, both grant, in equal numbers. Whose side stamps first has the directory.
#[test]
fn i8_two_clusters_that_have_grown_from_one_do_not_both_open_a_gate() {
    let world = World::new();
    let mut old = world.server();
    // Nothing here is about a lease that runs out on a starved machine.
    let side = world.side("workstation", &old).ttl("60s");
    world.tree(&side, "dev", &quick(&[]));
    side.mount("dev", &world.lower("dev"));
    turn(&side, "one");
    let file = world.path("backup");
    side.ok(&["cluster", "backup", file.to_str().unwrap()]);
    old.kill();
    let _first = Server::start_at(world.directory("server-2"), old.address());
    let second = Server::start(world.directory("server-3"));
    let other = world.side("pod", &second).ttl("60s");
    for side in [&side, &other] {
        side.ok(&["cluster", "restore", file.to_str().unwrap()]);
        let cluster = cluster_of(side);
        // A daemon that ran before must have met the new one, or it does not know what there is to follow.
        wait_for(LIMIT, "it follows the new cluster", || {
            side.run(&["follow", &cluster, "--reason", "the old node is gone"]).code == 0 || !stands(side).is_empty()
        });
        wait_for(LIMIT, "it sees the tree", || stands(side) == "cooling");
        side.ok(&["fence", "confirm", "dev", "--epoch", &epoch(side).to_string(), "--reason", "it is gone"]);
    }
    other.mount("dev", &world.lower("dev"));
    side.ok(&["acquire", "dev", "--wait", "60s"]);
    wait_for(LIMIT, "the first one writes", || std::fs::write(side.at("dev").join("file"), "two").is_ok());
    let stamp = stamped(&world.lower("dev"));
    let mut said = String::new();
    wait_for(LIMIT, "the second one is told why", || {
        let tried = other.run(&["acquire", "dev", "--wait", "30s"]);
        assert!(tried.code != 0 && !other.holds("dev"), "{tried}");
        said += &tried.stderr;
        said.contains("both have grown")
    });
    std::fs::write(other.at("dev").join("file"), "three").unwrap_err();
    assert!(side.holds("dev") && stamped(&world.lower("dev")) == stamp, "{said}");
    std::fs::write(side.at("dev").join("file"), "four").unwrap();
    assert_eq!(std::fs::read_to_string(world.lower("dev").join("file")).unwrap(), "four");
    // Also when nobody has the tree: the storage remembers whose it was last.
    side.ok(&["release", "dev", "--now"]);
    let tried = other.run(&["acquire", "dev", "--wait", "30s"]);
    assert!(tried.code != 0 && tried.stderr.contains("both have grown"), "{tried}");
    assert_eq!(stamped(&world.lower("dev")), stamp);
}

/// The control to the lifted epochs: a server whose disk was put back grants numbers that were granted before. The storage
/// remembers them, and no gate opens until somebody has lifted the tree.
#[test]
fn i8_a_server_put_back_to_an_old_disk_opens_no_gate_until_its_tree_is_raised() {
    let world = World::new();
    let (mut server, side) = one_side(&world);
    turn(&side, "one");
    server.stop();
    let (data, copy) = (server.dir().join("data"), world.path("old-disk"));
    run("cp", &["-a", data.to_str().unwrap(), copy.to_str().unwrap()]);
    server.restart();
    for n in 0..8 {
        turn(&side, &format!("turn {n}"));
    }
    let before = stamped(&world.lower("dev"));
    side.ok(&["down"]);
    server.stop();
    std::fs::remove_dir_all(&data).unwrap();
    run("cp", &["-a", copy.to_str().unwrap(), data.to_str().unwrap()]);
    server.restart();

    let other = world.side("pod", &server);
    other.mount("dev", &world.lower("dev"));
    let said = other.run(&["acquire", "dev", "--wait", "30s"]);
    assert!(said.code != 0 && said.stderr.contains("older server"), "{said}");
    assert!(epoch(&other) < before, "it grants what was granted before: {}", other.tree_status("dev"));
    let content = std::fs::read_to_string(other.file("dev", "file")).unwrap();
    assert_eq!((stamped(&world.lower("dev")), content.as_str()), (before, "turn 7"));
    wait_for(LIMIT, "the grant is given back", || stands(&other) == "free");

    other.run(&["tree", "raise-epoch", "dev", "--above", "1", "--reason", "an old disk"]).refused(75, &["already"]);
    other.ok(&["tree", "raise-epoch", "dev", "--above", &before.to_string(), "--reason", "an old disk"]);
    other.run(&["acquire", "dev", "-n"]).refused(75, &["raised"]);
    other.ok(&["fence", "confirm", "dev", "--epoch", &before.to_string(), "--reason", "nobody else was there"]);
    turn(&other, "after");
    assert!(stamped(&world.lower("dev")) > before);
    assert!(other.ok(&["history", "dev"]).stdout.contains("an old disk"));
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}
