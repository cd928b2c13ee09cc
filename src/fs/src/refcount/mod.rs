//! Reference counts of shared clusters.
