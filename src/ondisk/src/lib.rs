//! OCFS2's and jbd2's structures as typed bytes, with their checksums and their validity.
#![forbid(unsafe_code)]
