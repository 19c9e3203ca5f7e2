//! What people run all day: editors, shells, terminals, copies.

use treelease_tests::twin::Twin;

/// A file saved by a rename, by a backup beside it, and in place; who had it open before reads on in the old one.
#[test]
fn editors_that_save_by_rename_or_in_place_leave_what_they_leave_elsewhere() {
    let twin = Twin::new();
    let said = twin.script(
        r#"
        printf 'one\n' > text; chmod 640 text
        exec 3< text
        cp -p text .text.new; printf 'two\n' > .text.new; sync .text.new; mv .text.new text
        cat <&3; cat text; stat -c %a text
        mv text text~; cp -p text~ text; printf 'three\n' > text; cat text text~
        ln text linked; printf 'four\n' >> text; cat linked; stat -c %h linked
        sed -i 's/three/drei/' text; cat text linked
        printf 'short\n' > text; printf '%s' "$(cat text)"
        exec 4>> text; rm text; printf 'gone\n' >&4; ls
        "#,
    );
    assert!(said.starts_with("one\ntwo\n640\n"), "{said}");
    twin.same_below();
}

/// A tmux server whose socket lies in the tree, a FIFO between two processes, a socket of another program.
#[test]
fn sockets_and_fifos_connect_processes() {
    let twin = Twin::new();
    let said = twin.script(
        r#"
        tmux -S sock -f /dev/null new-session -d -s work 'sleep 600'
        tmux -S sock list-sessions -F '#{session_name}'
        tmux -S sock kill-server
        mkfifo pipe; ( echo through > pipe & cat pipe; wait )
        python3 - <<'END'
import os, socket
server = socket.socket(socket.AF_UNIX); server.bind("plain"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect("plain")
server.accept()[0].sendall(b"connected"); print(client.recv(64).decode())
END
        stat -c '%F' pipe plain; rm pipe plain
        "#,
    );
    assert!(said.starts_with("work\nthrough\nconnected\n"), "{said}");
}

/// `rsync -aHAX` into the tree and out of it has nothing left to do the second time: hard links, ACLs, attributes, holes, links,
/// times.
#[test]
fn rsync_copies_everything_in_and_out_and_then_has_nothing_to_do() {
    let twin = Twin::new();
    let said = twin.script(
        r#"
        mkdir -p from/deep; cd from
        echo a > a; ln a deep/b; ln -s ../a deep/link; mkfifo fifo; chmod 4750 a
        setfattr -n user.note -v hi a; setfacl -m u:games:r a; setfacl -d -m g:games:rx deep
        truncate -s 1M sparse; printf end >> sparse; touch -d '2001-02-03 04:05:06.789' a deep
        cd ..
        rsync -aHAX --sparse from/ "$PLACE/to/"
        rsync -aHAX -ni --delete from/ to/
        echo changed >> from/a; rm from/fifo; mv from/sparse from/moved
        touch -d 2002-02-02 from/a from/moved from
        rsync -aHAX -i --delete --inplace from/ to/ | cut -c1-11
        rsync -aHAX -ni --delete --checksum from/ to/
        getfattr --absolute-names -d -m user to/a | tail -n +2; getfacl -cp to/a to/deep; stat -c '%a %h %s %Y' to/a to/deep/b to/moved
        "#,
    );
    assert!(said.contains("user.note=\"hi\"") && said.contains("user:games:r--"), "{said}");
}

/// A thousand small files through an archive, with owners and modes, and the tree removed again.
#[test]
fn an_archive_is_unpacked_compared_and_removed() {
    let twin = Twin::new();
    twin.script(
        r#"
        mkdir src; for n in $(seq 300); do mkdir -p "src/$((n % 20))"; seq "$n" > "src/$((n % 20))/$n"; done
        chmod 700 src/3; chown -R games:games src/4; ln src/5/5 src/6/hard; ln -s nowhere src/7/dangling
        tar -cf src.tar src; mkdir out; tar -xpf src.tar -C out
        diff -r --no-dereference src out/src; tar -df src.tar -C out; find out -printf '%P %m %U %G %n %y\n' | grep -v ' d$' | sort | md5sum
        rm -r out/src src.tar; ls -A out
        "#,
    );
    twin.same_below();
}
