//! The guide says what the rules say.

#[test]
fn the_guide_for_users_is_made_of_the_rules() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/guides/checks-before-protection.md"
    );
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        there == protection::checks::guide(),
        "the guide is not what the rules say; make it anew: cargo run -p protection --example checks_guide > docs/guides/checks-before-protection.md"
    );
}
