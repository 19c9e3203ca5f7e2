//! One storage, one authority (I8): what another cluster's marker claims is not taken, by `up` or by `mount`. With the check off
//! there are two holders of one directory.

use treelease_tests::hosts::{Server, Side, World, quick};

#[test]
fn up_on_a_second_machine_over_a_claimed_directory_is_refused_and_starts_no_server() {
    let world = World::new();
    let (one, two) = (world.side_at("one", &[]), world.side_at("two", &[]));
    let dir = world.directory("project");
    std::fs::write(dir.join("file"), "before").unwrap();
    let path = dir.to_str().unwrap();
    one.ok(&["up", path]);
    // The second machine sees the storage itself, not the first one's guard.
    let raw = world.directory("raw");
    one.ok(&["down", "--server"]);
    bind(&dir, &raw);
    one.ok(&["up", path]);
    let marker = std::fs::read_to_string(raw.join(".treelease-tree")).unwrap();
    let refused = two.run(&["up", raw.to_str().unwrap()]).refused(78, &["join"]);
    let cluster = one_cluster(&marker);
    assert!(refused.stderr.contains(&cluster), "it does not name the cluster {cluster}\n{refused}");
    assert!(!two.dir().join("state/server").exists(), "it started a server");
    assert_eq!(std::fs::read_to_string(raw.join(".treelease-tree")).unwrap(), marker, "and nothing was overwritten");
    assert_eq!(two.daemon(), None, "and no daemon is left");
    one.ok(&["down", "--server"]);
}

fn bind(from: &std::path::Path, to: &std::path::Path) {
    let done = std::process::Command::new("mount").arg("--bind").args([from, to]).output().unwrap();
    assert!(done.status.success(), "mount --bind: {}", String::from_utf8_lossy(&done.stderr));
}

/// The id in a marker, whatever else is in it.
fn one_cluster(marker: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(marker).expect("a marker is JSON");
    json["cluster"].as_str().expect("a marker names its cluster").to_owned()
}

/// Two clusters that both know a tree `dev`; the directory carries the first one's marker, and the first side holds it.
fn two_clusters(world: &World) -> (Server, Server, Side, Side) {
    let (first, second) = (world.server(), Server::start(world.directory("server-2")));
    let (one, two) = (world.side("one", &first), world.side("two", &second));
    world.tree(&one, "dev", &quick(&[]));
    one.mount("dev", &world.lower("dev"));
    two.ok(&["tree", "add", "dev"]);
    one.ok(&["acquire", "dev"]);
    assert!(one.holds("dev"));
    (first, second, one, two)
}

#[test]
fn a_guard_mounts_nothing_that_another_cluster_s_marker_claims() {
    let world = World::new();
    let (_first, _second, one, two) = two_clusters(&world);
    two.try_mount("dev", &world.lower("dev"), &[]).refused(78, &["cluster"]);
    two.try_mount("dev", &world.lower("dev"), &["--adopt"]).refused(78, &["cluster"]);
    assert!(one.holds("dev") && !two.holds("dev"));
}

/// The positive control: the same two clusters, with nothing in the directory that says whose it is.
#[test]
fn without_the_marker_there_are_two_holders() {
    let world = World::new();
    let (_first, _second, one, two) = two_clusters(&world);
    for entry in std::fs::read_dir(world.lower("dev")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".treelease-tree") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    two.try_mount("dev", &world.lower("dev"), &["--adopt"]).expect(0);
    two.ok(&["acquire", "dev"]);
    assert!(one.holds("dev") && two.holds("dev"), "two holders, as expected without the marker");
    for side in [&one, &two] {
        std::fs::write(side.at("dev").join("file"), side.name()).unwrap();
    }
}
