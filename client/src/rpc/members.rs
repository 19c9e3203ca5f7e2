//! A change of the server's nodes: one call goes as far as its time allows, and is safe to repeat.

use super::{CallError, Servers, not_understood, same_cluster};
use crate::words::convert::TEXT_MAX;
use crate::words::id::ClusterId;
use crate::words::refusal::{Code, Refusal};
use crate::words::wire;

pub use crate::words::wire::members_request::Change as MembersChange;

/// How far it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembersSaid {
    /// It is so now.
    Done(String),
    /// Not yet; what it waits for. Ask again.
    Waits(String),
}

/// Node `node` at `addr` shall belong to the cluster.
pub fn add_node(node: u64, addr: String) -> MembersChange {
    MembersChange::Add(wire::AddNode { node, addr })
}

/// Node `node` shall not.
pub fn remove_node(node: u64) -> MembersChange {
    MembersChange::Remove(wire::RemoveNode { node })
}

impl Servers {
    /// One call of a change of the nodes. Asked again whatever came of it, it goes on where it was.
    pub async fn change_members(
        &self,
        actor: &str,
        cluster: Option<&ClusterId>,
        change: &MembersChange,
    ) -> Result<MembersSaid, CallError> {
        let request = wire::MembersRequest {
            cluster: cluster.map(ClusterId::to_string).unwrap_or_default(),
            actor: actor.chars().take(TEXT_MAX).collect(),
            change: Some(change.clone()),
        };
        let answer = self
            .call(false, |mut target, limit| {
                let request = target.request(request.clone(), limit);
                async move { target.client.change_members(request).await }
            })
            .await?;
        same_cluster(cluster, &answer.cluster.parse().map_err(|e| super::bad("cluster", e))?)?;
        if let Some(refused) = answer.refused {
            return Err(CallError::Refused(Refusal::try_from(refused).map_err(not_understood)?));
        }
        Ok(if answer.done { MembersSaid::Done(answer.said) } else { MembersSaid::Waits(answer.said) })
    }
}

/// `ID=HOST:PORT`, as `--peer` takes it.
pub fn node_at(text: &str) -> Result<(u64, String), Refusal> {
    let bad = |why: &str| Refusal::new(Code::Usage, format!("`{text}` is no node: {why}; write it like 4=10.0.0.4:7420"));
    let (id, addr) = text.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
    let id: u64 = id.parse().ok().filter(|id| *id > 0).ok_or_else(|| bad("its number is 1 or more"))?;
    let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port > 0 => Ok((id, addr.to_owned())),
        _ => Err(bad("its address is HOST:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_number_and_an_address() {
        assert_eq!(node_at("4=10.0.0.4:7420"), Ok((4, "10.0.0.4:7420".into())));
        assert_eq!(node_at("12=[::1]:1"), Ok((12, "[::1]:1".into())));
        for bad in ["", "4", "4=", "4=host", "4=host:0", "4=:1", "0=host:1", "x=host:1", "-1=host:1", "4=host:99999"] {
            let why = node_at(bad).expect_err(bad);
            assert!(why.code == Code::Usage && why.message.contains("4=10.0.0.4:7420"), "{why}");
        }
    }
}
