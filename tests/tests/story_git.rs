//! git through the guard: everything works for the holder, and what only reads works on the other side.

use treelease_tests::hosts::{Done, Side, World, quick};

fn git(side: &Side, dir: &str, args: &[&str]) -> Done {
    let dir = side.file("dev", dir);
    side.tool("git", &[&["-C", &dir][..], args].concat())
}

#[test]
fn clone_commit_worktree_gc_and_fsck_work_for_the_holder_and_status_log_and_diff_on_the_other_side() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let origin = world.directory("origin");
    let origin = origin.to_str().unwrap();
    workstation.tool("git", &["init", "-q", "-b", "main", origin]).expect(0);
    for n in 0..40 {
        std::fs::write(world.path("origin").join(format!("file-{n}")), format!("{n}\n").repeat(200)).unwrap();
    }
    workstation.tool("git", &["-C", origin, "add", "."]).expect(0);
    workstation.tool("git", &["-C", origin, "commit", "-qm", "first"]).expect(0);

    workstation.ok(&["acquire", "dev"]);
    workstation.tool("git", &["clone", "-q", "--no-local", origin, &workstation.file("dev", "repo")]).expect(0);
    std::fs::write(workstation.at("dev").join("repo/file-1"), "changed\n").unwrap();
    git(&workstation, "repo", &["commit", "-qam", "second"]).expect(0);
    git(&workstation, "repo", &["worktree", "add", "-q", "../tree", "-b", "side"]).expect(0);
    std::fs::write(workstation.at("dev").join("tree/new"), "new\n").unwrap();
    git(&workstation, "tree", &["add", "new"]).expect(0);
    git(&workstation, "tree", &["commit", "-qm", "third"]).expect(0);
    git(&workstation, "repo", &["gc", "-q", "--prune=now"]).expect(0);
    git(&workstation, "repo", &["fsck", "--full", "--strict"]).expect(0);
    assert_eq!(git(&workstation, "repo", &["status", "--porcelain"]).expect(0).stdout, "");
    std::fs::write(workstation.at("dev").join("repo/file-2"), "in the works\n").unwrap();

    let log = git(&pod, "tree", &["log", "--oneline"]).expect(0);
    assert_eq!(log.stdout.lines().count(), 3, "{log}");
    assert_eq!(git(&pod, "repo", &["status", "--porcelain"]).expect(0).stdout, " M file-2\n");
    assert!(git(&pod, "repo", &["diff"]).expect(0).stdout.contains("+in the works"));
    git(&pod, "repo", &["fsck", "--full"]).expect(0);
    let refused = git(&pod, "repo", &["commit", "-qam", "from the wrong side"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("Read-only file system"), "{refused}");
    assert!(!pod.at("dev").join("repo/.git/index.lock").exists());
    assert_eq!(git(&workstation, "repo", &["status", "--porcelain"]).expect(0).stdout, " M file-2\n");
    assert!(!git(&workstation, "", &["status"]).stdout.contains(".treelease"), "the marker is not there through the guard");
}

#[test]
fn a_repository_goes_from_side_to_side_and_stays_whole() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let run = |side: &Side, args: &[&str]| {
        let repo = side.file("dev", "repo");
        let run = ["run", "--tree", "dev", "--ask", "--wait", "30s", "--", "git", "-C", &repo];
        side.run(&[&run[..], args].concat()).expect(0)
    };
    std::fs::create_dir(workstation.at("dev").join("repo")).unwrap();
    run(&workstation, &["init", "-q", "-b", "main"]);
    for turn in 0..6 {
        let side = if turn % 2 == 0 { &pod } else { &workstation };
        run(side, &["commit", "-q", "--allow-empty", "-m", &format!("turn {turn}")]);
    }
    assert_eq!(run(&workstation, &["log", "--oneline"]).stdout.lines().count(), 6);
    run(&workstation, &["fsck", "--strict"]);
}
