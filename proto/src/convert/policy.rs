//! Policy pairs, and a whole policy as its pairs. Which keys and values there are is the policy's to say, not this file's.

use super::{BadMessage, Out, PAIRS_MAX, PATH_MAX, few, path};
use crate::policy::Policy;
use crate::wire::KeyValue;

/// Keys and values for the wire. Nothing is cut: a policy value cut short would be another policy.
pub fn pairs_to_wire(pairs: &[(String, String)]) -> Vec<KeyValue> {
    pairs.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect()
}

/// Keys and values from the wire, bounded but not yet understood.
pub fn pairs_from_wire(pairs: Vec<KeyValue>) -> Result<Vec<(String, String)>, BadMessage> {
    few("policy", pairs, PAIRS_MAX)?
        .into_iter()
        .map(|kv| Ok((path("policy.key", kv.key)?, path("policy.value", kv.value)?)))
        .collect()
}

/// A key that sides of earlier builds do not know, and take no status with: it is said where it is not as it was for them.
const LATER: &str = "unfence";

/// Every key of a policy.
pub(super) fn policy_to_wire(policy: &Policy) -> Vec<KeyValue> {
    let as_before = Policy::default().get(LATER);
    let said = |(key, value): &(&str, String)| *key != LATER || Some(value) != as_before.as_ref();
    policy.pairs().into_iter().filter(said).map(|(key, value)| KeyValue { key: key.into(), value }).collect()
}

/// A policy from its pairs; keys that are missing have their defaults.
pub(super) fn policy_from_wire(pairs: Vec<KeyValue>) -> Out<Policy> {
    let mut policy = Policy::default();
    for kv in few("policy", pairs, PAIRS_MAX)? {
        // The state may hold a `takeover` list longer than a command's limit; what is shown is not bounded again.
        policy.set(&kv.key, &kv.value).map_err(|e| BadMessage::new("policy", e.to_string()))?;
    }
    Ok(policy)
}

const _: () = assert!(PATH_MAX >= 16 * crate::id::NAME_MAX, "a takeover list of a good many sides fits into one value");

#[cfg(test)]
mod tests {
    use super::super::arbitrary;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_policy_comes_back_as_it_went(policy in arbitrary::policy()) {
            prop_assert_eq!(policy_from_wire(policy_to_wire(&policy)).unwrap(), policy);
        }
        #[test]
        fn policy_pairs_come_back_as_they_went(pairs in arbitrary::pairs()) {
            prop_assert_eq!(pairs_from_wire(pairs_to_wire(&pairs)).unwrap(), pairs);
        }
    }

    #[test]
    fn a_side_of_an_earlier_build_is_told_no_key_that_it_does_not_know_as_long_as_nobody_sets_it() {
        let says = |policy: &Policy| policy_to_wire(policy).iter().any(|kv| kv.key == LATER);
        let mut policy = Policy::default();
        assert!(!says(&policy));
        policy.set(LATER, "restart").unwrap();
        assert!(says(&policy));
    }

    #[test]
    fn a_giant_list_of_pairs_is_refused() {
        let many = vec![KeyValue { key: "mode".into(), value: "off".into() }; PAIRS_MAX + 1];
        assert_eq!(pairs_from_wire(many).unwrap_err().field, "policy");
    }
}
