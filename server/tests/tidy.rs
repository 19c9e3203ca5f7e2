//! Which module may name what, and how long a file may be.

use std::path::{Path, PathBuf};

#[test]
fn openraft_is_named_in_consensus_only() {
    only_in("openraft", &["src/consensus/"]);
}

#[test]
fn each_database_is_named_in_its_module_only() {
    only_in("::sled::", &["src/store/sled.rs", "src/store/kind.rs"]);
    only_in("::redb::", &["src/store/redb.rs", "src/store/kind.rs"]);
    // That one names our modules of these names, not the libraries.
    let text = std::fs::read_to_string(root().join("src/store/kind.rs")).unwrap();
    for (library, ours) in [("sled::", "super::sled::SledBackend"), ("redb::", "super::redb::RedbBackend")] {
        assert_eq!(text.matches(library).count(), text.matches(ours).count(), "{library}");
    }
}

#[test]
fn tonic_is_named_in_the_api_and_in_the_network_only() {
    only_in("tonic::", &["src/api/", "src/consensus/network.rs"]);
}

#[test]
fn the_rules_that_tests_leave_out_are_read_from_the_environment_in_one_place() {
    let reading = |file: &String| {
        file.starts_with("src/") && std::fs::read_to_string(root().join(file)).unwrap().contains("\"TREELEASE_TEST_FAULT\"")
    };
    assert_eq!(files().into_iter().filter(reading).collect::<Vec<_>>(), ["src/fault.rs"]);
}

#[test]
fn the_pure_cores_have_no_clock_no_io_and_no_order_by_chance() {
    for word in ["tokio", "std::fs", "std::net", "Instant", "SystemTime", "HashMap", "HashSet", "random()"] {
        let found = naming(word, |file| file.starts_with("src/lease/") || file.starts_with("src/expiry/"));
        let found: Vec<_> = found.into_iter().filter(|f| !f.contains("tests")).collect();
        assert!(found.is_empty(), "`{word}` in a pure core: {found:?}");
    }
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    for file in files() {
        let lines = std::fs::read_to_string(root().join(&file)).unwrap().lines().count();
        assert!(lines <= 500, "{file} has {lines} lines");
    }
}

fn only_in(word: &str, allowed: &[&str]) {
    let found = naming(word, |file| file.starts_with("src/") && !allowed.iter().any(|a| file.starts_with(a)));
    assert!(found.is_empty(), "`{word}` is named in {found:?}");
}

/// Files that name the word outside of comments and texts.
fn naming(word: &str, among: impl Fn(&str) -> bool) -> Vec<String> {
    let names_it = |file: &String| {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        text.lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .any(|line| line.contains(word) && !line.contains('"'))
    };
    files().into_iter().filter(|f| among(f)).filter(names_it).collect()
}

fn files() -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs: Vec<PathBuf> = vec![root().join("src"), root().join("tests")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
