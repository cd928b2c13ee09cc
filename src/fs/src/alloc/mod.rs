//! Allocation of clusters and of metadata blocks.

/// Hints and windows of the allocators; what counts is in their blocks.
#[derive(Default)]
pub struct State {}
