//! REST client of the orchestration API: tokens, paging, polling.
