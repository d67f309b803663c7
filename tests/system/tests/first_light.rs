//! The demo as a test: every step of its story has to hold.

use system_tests::story::Story;

#[test]
fn the_whole_story_of_the_demo_holds() -> anyhow::Result<()> {
    Story::tell("first-light", false)
}
