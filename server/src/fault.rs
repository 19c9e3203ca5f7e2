//! Rules left out on purpose, so that tests can show that they would notice: `TREELEASE_TEST_FAULT=NAME`.
//!
//! Promises: release builds know none. The names are `die_in_joint` (killed between the two steps of a change of voters),
//! `no_hand_over` (a leader just ends), `contact_is_quorum` (a follower that hears a leader believes in a quorum), `any_disk` (a
//! message counts whatever directory it is from), `reuse_ids` (numbers of earlier nodes are forgotten), `older_node` (it knows no calls for
//! renewals that stay open, as builds of before did not).

/// Whether a test asks for this fault.
pub fn is(name: &str) -> bool {
    cfg!(debug_assertions) && std::env::var("TREELEASE_TEST_FAULT").is_ok_and(|asked| asked == name)
}
