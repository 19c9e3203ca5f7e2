//! Root and not root: a guard without capabilities, one mount for many users, and a storage on which root is a stranger.

use std::os::unix::fs::MetadataExt;

use treelease_tests::hosts::User;
use treelease_tests::twin::Twin;

/// A guard of an ordinary user has no capability, is mounted by fusermount3, shows its tree to that user alone, and makes files
/// of that user's.
#[test]
fn a_guard_without_any_capability_serves_its_user_and_nobody_else() {
    let user = User::ordinary();
    let twin = Twin::of(user);
    let daemon = twin.side.daemon().expect("a daemon runs");
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status")).expect("its status");
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    assert_eq!((line("CapEff:").as_str(), line("CapPrm:").as_str()), ("0000000000000000", "0000000000000000"));
    assert!(line("Uid:").starts_with("5\t5\t5\t5"), "{}", line("Uid:"));
    let said = twin.script(
        r#"
        umask 027; mkdir -p dir/sub; echo text > dir/file; ln dir/file dir/hard; ln -s file dir/link; mkfifo dir/fifo
        printf 'more\n' >> dir/file; chmod 604 dir/file; mv dir/sub dir/moved; truncate -s 3 dir/hard; cat dir/link
        chown 0 dir/file 2>/dev/null || echo "may not give away"; setfattr -n user.note -v x dir/file
        find . -printf '%P %y %m %U %G\n' | sort
        "#,
    );
    assert!(said.contains("may not give away") && said.contains("dir/file f 604 5 60"), "{said}");
    twin.same_below();
    let stranger = twin.run_as(User::of(1, 1), twin.world.dir(), "ls side-workstation/mnt/dev/dir");
    assert!(stranger.code != 0 && stranger.stderr.contains("Permission denied"), "{stranger}");
    twin.side.ok(&["release", "dev"]);
}

/// Shell functions for users in a script: `as UID GID GROUPS SCRIPT`, whose refusals are words too.
const AS: &str = r#"
    as() { setpriv --reuid="$1" --regid="$2" --groups="$3" --inh-caps=-all sh -uc "$4" 2>&1 || echo "exit $?"; }
"#;

/// Through root's guard each call is its caller's: user, group, further groups, umask, sticky and set-group directories, owners.
#[test]
fn on_a_mount_for_many_users_each_call_is_its_callers() {
    let twin = Twin::new();
    let said = twin.script(&format!(
        r#"{AS}
        chmod 755 .; umask 022
        mkdir -m 777 open; mkdir -m 2775 setgid; chgrp 60 setgid; mkdir -m 1777 sticky; mkdir -m 700 private; echo x > private/x
        as 5 60 60,12 'umask 027; echo a > open/a; mkdir open/d; ln -s a open/l; mkfifo open/p; ln open/a open/hard'
        as 5 60 60,12 'umask 002; echo b > setgid/b; mkdir setgid/d; cat private/x; ls private; echo y > private/y'
        as 1 1 12 'cat open/a; echo x > open/a; chmod 777 open/a; touch -d 2001-01-01 open/a; rm open/a; echo back > open/a'
        as 1 1 60 'cat open/hard; echo g >> setgid/b; echo mine > sticky/mine; umask 077; echo z > setgid/z'
        as 5 60 60 'rm -f sticky/mine; mv sticky/mine sticky/theirs; cat setgid/z'
        as 5 60 60,12 'chgrp 12 open/hard; chgrp 60 open/d; chgrp 13 open/hard; chown 1 open/hard; chmod 2755 open/hard'
        as 5 60 60 'chmod 2755 open/hard; setfattr -n user.note -v x open/hard; setfattr -n user.note -v x private; truncate -s 0 open/a'
        as 1 1 1 'test -w open/hard && echo writable; test -r open/hard && echo readable; test -x private && echo enters; cd private'
        printf '#!/bin/sh\necho ran\n' > tool; chmod 750 tool; chgrp 60 tool
        as 1 1 1 './tool'; as 1 1 60 './tool'; as 1 60 60 './tool'
        as 1 1 1 'mknod open/device c 1 3; mkdir open/d/deep; ln private/x open/x; ln -s x private/s; mv open/p private/p'
        mkdir -m 744 listed; echo 1 > listed/one; mkdir listed/two; mkdir -m 711 entered; echo 3 > entered/three
        as 1 1 1 'ls listed; cat listed/one; ls entered; cat entered/three; ls -l listed | grep -c one'
        find . -printf '%P %y %m %U %G %n\n' | sed 's/ [0-9]*$//' | sort
        "#
    ));
    assert!(said.contains("setgid/d d 2775 5 60") && said.contains("open/a") && said.contains("Permission denied"), "{said}");
    twin.same_below();
}

/// A write, a truncation or a change of owner takes the set-user-id and set-group-id bits away, as below.
#[test]
fn set_id_bits_are_dropped_by_whoever_may_not_keep_them() {
    let twin = Twin::new();
    let said = twin.script(&format!(
        r#"{AS}
        chmod 755 .; mkdir -m 777 open; cd open
        for name in write append cut fall map copy chown group root; do
            printf 'some text' > $name; chown 5:60 $name; chmod 6777 $name
        done
        as 1 1 1 'printf x | dd of=write conv=notrunc status=none; echo x >> append; : > cut; fallocate -l 9000 fall'
        as 1 1 1 'python3 -c "import mmap; f = open(\"map\", \"r+b\"); m = mmap.mmap(f.fileno(), 0); m[0:1] = b\"X\"; m.flush()"'
        as 1 1 1 'python3 -c "import os; os.copy_file_range(os.open(\"write\", os.O_RDONLY), os.open(\"copy\", os.O_WRONLY), 4)"'
        chown 1 chown; as 5 60 60,12 'chgrp 12 group'; echo x >> root
        stat -c '%n %a %u %g' *
        "#
    ));
    assert!(said.contains("append 777 5 60") && said.contains("write 777 5 60"), "{said}");
}

/// Access control lists decide, as below, who else may read and write; and a directory's default list what is made in it.
#[test]
fn access_control_lists_are_obeyed() {
    let twin = Twin::new();
    let said = twin.script(&format!(
        r#"{AS}
        chmod 755 .; mkdir -m 755 dir; echo secret > dir/file; chmod 600 dir/file
        as 1 1 1 'cat dir/file'
        setfacl -m u:1:rw dir/file; as 1 1 1 'cat dir/file; echo more >> dir/file'; as 2 2 2 'cat dir/file'
        setfacl -m u:1:0 -m o::r dir/file; as 1 1 1 'cat dir/file'; as 2 2 2 'cat dir/file'
        setfacl -m g:12:rwx dir; as 1 1 12 'echo made > dir/made; ls dir'; as 1 1 1 'echo not > dir/not'
        setfacl -b dir/file; chmod 644 dir/file; as 1 1 1 'cat dir/file'
        mkdir -m 777 given; setfacl -d -m u:1:rwx,g::rwx,o::0 given
        as 2 2 2 'umask 077; echo x > given/file; mkdir given/sub; mknod given/fifo p'
        getfacl -cnp dir/file given given/file given/sub given/fifo; stat -c '%n %a' given/*
        "#
    ));
    assert!(said.contains("user:1:rwx"), "{said}");
}

/// On a storage where root is nobody (root has no way past modes and owners, and cannot give files away) the guard serves its
/// users all the same, flushes and hands over clean, and chowns nothing.
#[test]
fn where_root_is_a_stranger_users_work_and_nothing_is_ever_chowned() {
    let (twin, user) = (Twin::squashed(), User::ordinary());
    let said = twin.script_as(
        user,
        r#"
        umask 077; mkdir -p private/deep; cd private; echo secret > file; chmod 600 file
        echo more >> file; cat file
        python3 - <<'END'
import mmap, os
f = open("file", "a+b"); f.write(b"appended\n"); f.flush(); f.seek(0); print(f.read())
m = open("mapped", "w+b"); m.truncate(65536); view = mmap.mmap(m.fileno(), 0); view[70:74] = b"here"; view.flush()
print(open("mapped", "rb").read().find(b"here"))
os.truncate("file", 6); fd = os.open("file", os.O_RDWR | os.O_APPEND); os.write(fd, b"again"); os.fsync(fd)
print(os.pread(fd, 20, 0)); w = os.open("only", os.O_WRONLY | os.O_CREAT, 0o200); os.write(w, b"x"); os.close(w)
a = os.open("mapped", os.O_RDWR | os.O_APPEND); view = mmap.mmap(a, 0); view[5:6] = b"!"; view.flush()
print(open("mapped", "rb").read()[5:6])
END
        mv file deep/moved; ln deep/moved hard; ln -s hard link; cat link; rm hard; chmod 000 deep/moved; chmod 400 deep/moved
        git init -q -b main repo; cd repo; echo x > x; git add x; git -c user.name=n -c user.email=e commit -qm x; git fsck --strict
        chown 0 x 2> /dev/null || echo 'may not give away'
        sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t(n); INSERT INTO t VALUES (1), (2); SELECT sum(n) FROM t;'
        "#,
    );
    assert!(said.contains("may not give away") && said.ends_with("wal\n3\n"), "{said}");
    let stranger = twin.run(&twin.guarded(), "cat private/deep/moved");
    assert!(stranger.code != 0 && stranger.stderr.contains("Permission denied"), "root is nobody there: {stranger}");
    twin.side.ok(&["release", "dev"]);
    let last = twin.side.tree_status("dev")["last_end"].clone();
    assert_eq!(last, "clean");
    let lower = twin.world.lower("dev");
    let mut dirs = vec![lower];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("below").flatten() {
            let meta = entry.metadata().expect("below");
            assert_eq!(meta.uid(), user.uid, "{} belongs to somebody else", entry.path().display());
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
}
