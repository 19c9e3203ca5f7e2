//! git: everything that a day with it does.

use treelease_tests::twin::Twin;

/// clone, branches, merge, rebase, stash, worktrees, gc, fsck: git makes the same commits and shows the same status as in a bare
/// directory.
#[test]
fn a_day_with_git_is_the_same_day() {
    let twin = Twin::new();
    twin.script(
        r#"
        git init -q -b main origin
        cd origin
        for n in $(seq 120); do mkdir -p "dir$((n % 7))"; seq "$n" > "dir$((n % 7))/file$n"; done
        printf '#!/bin/sh\n' > run; chmod +x run; ln -s run link
        git add -A; git commit -qm first
        cd ..
        git clone -q --no-local origin twin
        cd twin
        git checkout -q -b topic
        for n in 1 2 3; do echo "topic $n" >> dir1/file1; git commit -qam "topic $n"; done
        git checkout -q main
        echo main >> dir2/file2; git commit -qam main
        git rebase -q main topic
        git checkout -q main; git merge -q --no-edit topic
        echo later > new; git add new; echo more >> run; git stash -q; git stash pop -q; git commit -qam stashed
        git mv dir3 moved; git rm -q dir4/file4; git commit -qm moved
        git worktree add -q ../tree -b side
        ( cd ../tree; echo side > side; git add side; git commit -qm side; git status --porcelain )
        git cherry-pick side > /dev/null
        git gc -q --prune=now
        git fsck --strict --no-progress
        git reflog expire --expire=now --all; git repack -adq
        git bisect start HEAD HEAD~4 > /dev/null 2>&1; git bisect run true > /dev/null 2>&1; git bisect reset > /dev/null 2>&1
        git worktree remove ../tree
        git log --all --format='%H %s'
        git ls-files -s
        git status --porcelain=v2 --branch
        git count-objects -v | grep -v size
        "#,
    );
}

/// A monitor that says which files changed (`core.fsmonitor`), and the caches that live on directory times.
#[test]
fn gits_file_system_monitor_and_its_untracked_cache_see_what_changes() {
    let twin = Twin::new();
    let said = twin.script(
        r#"
        git init -q -b main repo
        cd repo
        printf '#!/bin/sh\nprintf "token\\0"; cat changed 2>/dev/null | tr "\\n" "\\0"\n' > .git/monitor; chmod +x .git/monitor
        git config core.fsmonitor .git/monitor; git config core.fsmonitorHookVersion 2
        git config core.untrackedCache true
        mkdir sub; for n in $(seq 40); do echo "$n" > "sub/$n"; done; echo changed > .git/info/exclude
        git add -A; git commit -qm first; git status --porcelain
        echo other > sub/7; echo sub/7 > changed; git status --porcelain
        rm sub/8; echo sub/8 >> changed; echo x > sub/untracked; echo sub/untracked >> changed; git status --porcelain
        rm sub/untracked; git status --porcelain
        "#,
    );
    assert!(said.contains("M sub/7") && said.contains("?? sub/untracked"), "{said}");
}
