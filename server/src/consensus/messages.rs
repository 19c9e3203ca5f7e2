//! What nodes say to each other: openraft's requests and answers to `raft.proto` and back.
//!
//! What cannot be read is an error that says which part, never a guess. It does not know who sent it: the stamp is looked at
//! by [`super::peers`].

use std::io;
use std::time::Duration;

use openraft::SnapshotSegmentId;
use openraft::error::SnapshotMismatch;
use treelease_proto::wire;

use super::codec::{
    entry_from_wire, entry_to_wire, log_id_from_wire, log_id_to_wire, meta_from_wire, meta_to_wire, vote_from_wire, vote_to_wire,
};
use super::peers::QuorumAge;
use super::types::{AppendAnswer, AppendRequest, LogId, SnapshotAnswer, SnapshotRequest, Vote, VoteAnswer, VoteRequest};
use crate::fault::{Fault, Faults};
use crate::store::damaged;

pub fn quorum_age_from_wire(tells: bool, ms: Option<u64>, faults: Faults) -> QuorumAge {
    match (tells && !faults.has(Fault::ContactIsQuorum), ms) {
        (false, _) => QuorumAge::Unsaid,
        (true, Some(ms)) => QuorumAge::Ago(Duration::from_millis(ms)),
        (true, None) => QuorumAge::Never,
    }
}

fn age_to_wire(age: QuorumAge) -> (bool, Option<u64>) {
    match age {
        QuorumAge::Ago(age) => (true, Some(age.as_millis() as u64)),
        QuorumAge::Never => (true, None),
        QuorumAge::Unsaid => (false, None),
    }
}

pub fn append_to_wire(request: &AppendRequest, stamp: wire::Stamp, age: QuorumAge) -> wire::AppendRequest {
    let (tells_age, quorum_age_ms) = age_to_wire(age);
    wire::AppendRequest {
        stamp: Some(stamp),
        vote: Some(vote_to_wire(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request.entries.iter().map(entry_to_wire).collect(),
        commit: request.leader_commit.as_ref().map(log_id_to_wire),
        quorum_age_ms,
        tells_age,
    }
}

pub fn append_from_wire(request: wire::AppendRequest) -> io::Result<AppendRequest> {
    let prev_log_id = optional(request.prev)?;
    let entries = request.entries.into_iter().map(entry_from_wire).collect::<io::Result<Vec<_>>>()?;
    let start = prev_log_id.map_or(0, |prev| prev.index + 1);
    if entries.iter().zip(start..).any(|(entry, index)| entry.log_id.index != index) {
        return Err(damaged("a node's message has entries that do not follow one another"));
    }
    Ok(AppendRequest { vote: vote(request.vote)?, prev_log_id, entries, leader_commit: optional(request.commit)? })
}

pub fn append_answer_to_wire(answer: &AppendAnswer, stamp: wire::Stamp) -> wire::AppendAnswer {
    use wire::append_answer::Kind;
    let kind = match answer {
        AppendAnswer::Success => Kind::Success(wire::AppendSuccess {}),
        AppendAnswer::PartialSuccess(upto) => Kind::Partial(wire::AppendPartial { upto: upto.as_ref().map(log_id_to_wire) }),
        AppendAnswer::Conflict => Kind::Conflict(wire::AppendConflict {}),
        AppendAnswer::HigherVote(vote) => Kind::Higher(vote_to_wire(vote)),
    };
    wire::AppendAnswer { stamp: Some(stamp), kind: Some(kind) }
}

pub fn append_answer_from_wire(answer: wire::AppendAnswer) -> io::Result<AppendAnswer> {
    use wire::append_answer::Kind;
    Ok(match answer.kind.ok_or_else(missing)? {
        Kind::Success(_) => AppendAnswer::Success,
        Kind::Partial(partial) => AppendAnswer::PartialSuccess(optional(partial.upto)?),
        Kind::Conflict(_) => AppendAnswer::Conflict,
        Kind::Higher(vote) => AppendAnswer::HigherVote(vote_from_wire(vote)?),
    })
}

pub fn vote_request_to_wire(request: &VoteRequest, stamp: wire::Stamp) -> wire::VoteRequest {
    let last = request.last_log_id.as_ref().map(log_id_to_wire);
    wire::VoteRequest { stamp: Some(stamp), vote: Some(vote_to_wire(&request.vote)), last }
}

pub fn vote_request_from_wire(request: wire::VoteRequest) -> io::Result<VoteRequest> {
    Ok(VoteRequest { vote: vote(request.vote)?, last_log_id: optional(request.last)? })
}

pub fn vote_answer_to_wire(answer: &VoteAnswer, stamp: wire::Stamp) -> wire::VoteAnswer {
    let last = answer.last_log_id.as_ref().map(log_id_to_wire);
    wire::VoteAnswer { stamp: Some(stamp), vote: Some(vote_to_wire(&answer.vote)), granted: answer.vote_granted, last }
}

pub fn vote_answer_from_wire(answer: wire::VoteAnswer) -> io::Result<VoteAnswer> {
    Ok(VoteAnswer { vote: vote(answer.vote)?, vote_granted: answer.granted, last_log_id: optional(answer.last)? })
}

pub fn snapshot_to_wire(request: SnapshotRequest, stamp: wire::Stamp, age: QuorumAge) -> wire::SnapshotRequest {
    let (tells_age, quorum_age_ms) = age_to_wire(age);
    wire::SnapshotRequest {
        stamp: Some(stamp),
        vote: Some(vote_to_wire(&request.vote)),
        meta: Some(meta_to_wire(&request.meta)),
        offset: request.offset,
        data: request.data,
        done: request.done,
        quorum_age_ms,
        tells_age,
    }
}

pub fn snapshot_from_wire(request: wire::SnapshotRequest) -> io::Result<SnapshotRequest> {
    Ok(SnapshotRequest {
        vote: vote(request.vote)?,
        meta: meta_from_wire(request.meta.ok_or_else(missing)?)?,
        offset: request.offset,
        data: request.data,
        done: request.done,
    })
}

pub fn snapshot_answer_to_wire(answer: Result<&SnapshotAnswer, &SnapshotMismatch>, stamp: wire::Stamp) -> wire::SnapshotAnswer {
    use wire::snapshot_answer::Kind;
    let kind = match answer {
        Ok(answer) => Kind::Vote(vote_to_wire(&answer.vote)),
        Err(SnapshotMismatch { expect, got }) => Kind::Mismatch(wire::SnapshotMismatch {
            expect_id: expect.id.clone(),
            expect_offset: expect.offset,
            got_id: got.id.clone(),
            got_offset: got.offset,
        }),
    };
    wire::SnapshotAnswer { stamp: Some(stamp), kind: Some(kind) }
}

pub fn snapshot_answer_from_wire(answer: wire::SnapshotAnswer) -> io::Result<Result<SnapshotAnswer, SnapshotMismatch>> {
    use wire::snapshot_answer::Kind;
    Ok(match answer.kind.ok_or_else(missing)? {
        Kind::Vote(vote) => Ok(SnapshotAnswer { vote: vote_from_wire(vote)? }),
        Kind::Mismatch(m) => Err(SnapshotMismatch {
            expect: SnapshotSegmentId { id: m.expect_id, offset: m.expect_offset },
            got: SnapshotSegmentId { id: m.got_id, offset: m.got_offset },
        }),
    })
}

fn vote(vote: Option<wire::Vote>) -> io::Result<Vote> {
    vote_from_wire(vote.ok_or_else(missing)?)
}

fn optional(id: Option<wire::LogId>) -> io::Result<Option<LogId>> {
    id.map(|id| log_id_from_wire(Some(id))).transpose()
}

fn missing() -> io::Error {
    damaged("a part of a node's message is missing: is it of a newer version?")
}
