//! Entries, votes, members and snapshots to bytes and back, as prost messages of `raft.proto`.
//!
//! Never openraft's own serde structures: their form is no stable format (STACK 1.2). What cannot be read is an error that
//! says which field, never a guess. It does not know where the bytes lie.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use openraft::{CommittedLeaderId, EntryPayload};
use prost::Message;
use treelease_proto::command::Proposal;
use treelease_proto::wire;

use super::types::{Batch, Entry, LogId, Membership, SnapshotMeta, StoredMembership, Vote};
use crate::lease::State;
use crate::store::damaged;
use crate::store::identity::Member;

/// Greatest term and index that are believed: nobody counts that far, and from here one more can always be counted. A greater one
/// is damage, or was forged to overflow.
pub const COUNT_MAX: u64 = 1 << 62;
/// The form of a snapshot that this version writes and reads.
const SNAPSHOT_FORMAT: u32 = 1;
/// Longest header of a snapshot: it names members.
const HEADER_MAX: usize = 1 << 20;

/// A batch, for the log.
pub fn batch_to_bytes(batch: &Batch) -> Vec<u8> {
    batch_to_wire(batch).encode_to_vec()
}

/// A batch, from the log.
pub fn batch_from_bytes(bytes: &[u8]) -> io::Result<Batch> {
    batch_from_wire(wire::Batch::decode(bytes).map_err(undecodable)?)
}

/// A proposal as the log will give it back (wall time to the millisecond, texts cut), and how many bytes it takes in an
/// entry. What is applied now and what is applied after a restart must be the same, to the last digit.
pub fn as_logged(proposal: &Proposal) -> io::Result<(Proposal, usize)> {
    let message = wire::Proposal::from(proposal);
    let len = message.encoded_len() + FRAMING;
    Proposal::try_from(message).map(|logged| (logged, len)).map_err(|e| damaged(e.to_string()))
}

/// Upper bound of what a message inside another one costs beside its content.
const FRAMING: usize = 8;

/// An entry, for the log.
pub fn entry_to_bytes(entry: &Entry) -> Vec<u8> {
    entry_to_wire(entry).encode_to_vec()
}

pub(super) fn entry_to_wire(entry: &Entry) -> wire::LogEntry {
    use wire::log_entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(wire::Blank {}),
        EntryPayload::Normal(batch) => Payload::Batch(batch_to_wire(batch)),
        EntryPayload::Membership(members) => Payload::Membership(membership_to_wire(members)),
    };
    wire::LogEntry { id: Some(log_id_to_wire(&entry.log_id)), payload: Some(payload) }
}

/// An entry, from the log.
pub fn entry_from_bytes(bytes: &[u8]) -> io::Result<Entry> {
    entry_from_wire(wire::LogEntry::decode(bytes).map_err(undecodable)?)
}

pub(super) fn entry_from_wire(message: wire::LogEntry) -> io::Result<Entry> {
    use wire::log_entry::Payload;
    let payload = match message.payload {
        Some(Payload::Blank(_)) => EntryPayload::Blank,
        Some(Payload::Batch(batch)) => EntryPayload::Normal(batch_from_wire(batch)?),
        Some(Payload::Membership(members)) => EntryPayload::Membership(membership_from_wire(members)),
        None => return Err(damaged("an entry without content: was it written by a newer version?")),
    };
    Ok(Entry { log_id: log_id_from_wire(message.id)?, payload })
}

/// A vote.
pub fn vote_to_bytes(vote: &Vote) -> Vec<u8> {
    vote_to_wire(vote).encode_to_vec()
}

pub(super) fn vote_to_wire(vote: &Vote) -> wire::Vote {
    let id = vote.leader_id();
    wire::Vote { term: id.term, node: id.node_id, committed: vote.committed }
}

/// A vote.
pub fn vote_from_bytes(bytes: &[u8]) -> io::Result<Vote> {
    vote_from_wire(wire::Vote::decode(bytes).map_err(undecodable)?)
}

pub(super) fn vote_from_wire(vote: wire::Vote) -> io::Result<Vote> {
    let wire::Vote { term, node, committed } = vote;
    counted("term", term)?;
    Ok(if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) })
}

/// The name of an entry.
pub fn log_id_to_bytes(id: &LogId) -> Vec<u8> {
    log_id_to_wire(id).encode_to_vec()
}

/// The name of an entry.
pub fn log_id_from_bytes(bytes: &[u8]) -> io::Result<LogId> {
    log_id_from_wire(Some(wire::LogId::decode(bytes).map_err(undecodable)?))
}

/// A snapshot: a header, and the state as JSON. The file that it is kept in has a checksum.
pub fn write_snapshot(out: &mut dyn Write, meta: &SnapshotMeta, state: &State) -> io::Result<()> {
    out.write_all(&meta_to_wire(meta).encode_length_delimited_to_vec())?;
    serde_json::to_writer(out, state).map_err(io::Error::from)
}

/// A snapshot, in pieces too.
pub fn read_snapshot(input: &mut impl Read) -> io::Result<(SnapshotMeta, State)> {
    let meta = read_snapshot_meta(input)?;
    let state = serde_json::from_reader(input).map_err(|e| match e.classify() {
        serde_json::error::Category::Io => io::Error::from(e),
        _ => damaged(format!("a snapshot's state: {e}")),
    })?;
    Ok((meta, state))
}

/// What it says about itself, without the state.
pub fn read_snapshot_meta(input: &mut impl Read) -> io::Result<SnapshotMeta> {
    let short = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged("a snapshot's header is cut short"),
        _ => e,
    };
    // The length of the header, seven bits a byte.
    let (mut len, mut byte) = (0usize, [0x80]);
    for shift in (0..).step_by(7).take_while(|shift| *shift < 28) {
        if byte[0] & 0x80 == 0 {
            break;
        }
        input.read_exact(&mut byte).map_err(short)?;
        len |= usize::from(byte[0] & 0x7f) << shift;
    }
    if byte[0] & 0x80 != 0 || len > HEADER_MAX {
        return Err(damaged("a snapshot's header is longer than any can be"));
    }
    let mut header = vec![0; len];
    input.read_exact(&mut header).map_err(short)?;
    meta_from_wire(wire::SnapshotHeader::decode(&header[..]).map_err(undecodable)?)
}

/// The same in memory.
#[cfg(test)]
pub fn snapshot_to_bytes(meta: &SnapshotMeta, state: &State) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    write_snapshot(&mut out, meta, state).map(|()| out)
}

/// The same from memory.
#[cfg(test)]
pub fn snapshot_from_bytes(mut bytes: &[u8]) -> io::Result<(SnapshotMeta, State)> {
    read_snapshot(&mut bytes)
}

pub(super) fn meta_to_wire(meta: &SnapshotMeta) -> wire::SnapshotHeader {
    wire::SnapshotHeader {
        format: SNAPSHOT_FORMAT,
        last: meta.last_log_id.as_ref().map(log_id_to_wire),
        membership_at: meta.last_membership.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(meta.last_membership.membership())),
        id: meta.snapshot_id.clone(),
    }
}

pub(super) fn meta_from_wire(header: wire::SnapshotHeader) -> io::Result<SnapshotMeta> {
    if header.format != SNAPSHOT_FORMAT {
        return Err(damaged(format!("a snapshot has format {}, this version reads {SNAPSHOT_FORMAT}", header.format)));
    }
    let optional = |id: Option<wire::LogId>| id.map(|id| log_id_from_wire(Some(id))).transpose();
    let membership = membership_from_wire(header.membership.unwrap_or_default());
    Ok(SnapshotMeta {
        last_log_id: optional(header.last)?,
        last_membership: StoredMembership::new(optional(header.membership_at)?, membership),
        snapshot_id: header.id,
    })
}

fn batch_to_wire(batch: &Batch) -> wire::Batch {
    wire::Batch { proposals: batch.0.iter().map(wire::Proposal::from).collect() }
}

fn batch_from_wire(batch: wire::Batch) -> io::Result<Batch> {
    let proposals = batch.proposals.into_iter().map(|p| Proposal::try_from(p).map_err(|e| damaged(e.to_string())));
    proposals.collect::<io::Result<_>>().map(Batch)
}

pub(super) fn log_id_to_wire(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(super) fn log_id_from_wire(id: Option<wire::LogId>) -> io::Result<LogId> {
    let id = id.ok_or_else(|| damaged("an entry without its id"))?;
    counted("term", id.term)?;
    counted("index", id.index)?;
    Ok(LogId::new(CommittedLeaderId::new(id.term, id.node), id.index))
}

fn membership_to_wire(members: &Membership) -> wire::Membership {
    wire::Membership {
        configs: members.get_joint_config().iter().map(|ids| wire::IdSet { ids: ids.iter().copied().collect() }).collect(),
        nodes: members
            .nodes()
            .map(|(id, node)| wire::Member { id: *id, addr: node.addr.clone(), disk: node.disk.clone() })
            .collect(),
    }
}

fn membership_from_wire(members: wire::Membership) -> Membership {
    let configs: Vec<BTreeSet<u64>> = members.configs.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Member> = members.nodes.into_iter().map(|m| (m.id, Member { addr: m.addr, disk: m.disk })).collect();
    Membership::new(configs, nodes)
}

fn counted(what: &str, number: u64) -> io::Result<()> {
    if number <= COUNT_MAX { Ok(()) } else { Err(damaged(format!("a {what} of {number}, which nobody can have counted"))) }
}

fn undecodable(error: prost::DecodeError) -> io::Error {
    damaged(error.to_string())
}
