//! How to mount, as a configuration or a client says it: checked in one place.

use std::time::Duration;

use crate::door::{Coherency, MountOptions, OnError};
use crate::failure::{Failure, Result};

/// A commit waits at least and at most so long.
const COMMIT_INTERVAL_MS: std::ops::RangeInclusive<u32> = 50..=300_000;
/// The largest piece that a write to shared clusters copies.
const COPY_ON_WRITE_MAX: u32 = 64 << 20;
/// The largest page cache. What there is of DMA memory is another limit, and tells by itself.
const PAGE_CACHE_MAX: u64 = 1 << 40;

/// What somebody wishes; `None` leaves the default.
#[derive(Debug, Default)]
pub struct Wishes {
    pub read_only: bool,
    pub on_error: OnError,
    pub coherency: Coherency,
    pub page_cache_bytes: Option<u64>,
    pub copy_on_write_bytes: Option<u32>,
    pub commit_interval_ms: Option<u32>,
}

impl Wishes {
    pub fn into_options(self) -> Result<MountOptions> {
        let mut options = MountOptions {
            read_only: self.read_only,
            on_error: self.on_error,
            coherency: self.coherency,
            ..MountOptions::default()
        };
        if let Some(bytes) = self.page_cache_bytes {
            options.page_cache_bytes = usize::try_from(bytes)
                .ok()
                .filter(|_| bytes <= PAGE_CACHE_MAX)
                .ok_or_else(|| {
                    let problem = format!("{bytes} bytes are more than {PAGE_CACHE_MAX}");
                    Failure::field("page_cache_bytes", problem)
                })?;
        }
        if let Some(bytes) = self.copy_on_write_bytes {
            if bytes > COPY_ON_WRITE_MAX {
                let problem = format!("{bytes} bytes are more than {COPY_ON_WRITE_MAX}");
                return Err(Failure::field("copy_on_write_bytes", problem));
            }
            options.copy_on_write_bytes = bytes;
        }
        if let Some(ms) = self.commit_interval_ms {
            if !COMMIT_INTERVAL_MS.contains(&ms) {
                let problem = format!("{ms} ms are not within {COMMIT_INTERVAL_MS:?}");
                return Err(Failure::field("commit_interval_ms", problem));
            }
            options.commit_interval = Duration::from_millis(ms.into());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_checked() {
        let options = Wishes {
            page_cache_bytes: Some(0),
            copy_on_write_bytes: Some(0),
            commit_interval_ms: Some(1000),
            coherency: Coherency::Buffered,
            ..Wishes::default()
        };
        let options = options.into_options().unwrap();
        assert_eq!(
            (options.page_cache_bytes, options.copy_on_write_bytes),
            (0, 0)
        );
        assert_eq!(options.commit_interval, Duration::from_secs(1));
        assert_eq!(options.coherency, Coherency::Buffered);
        assert_eq!(
            Wishes::default().into_options().unwrap(),
            MountOptions::default()
        );
        let field = |wishes: Wishes| wishes.into_options().unwrap_err().into_detail().field;
        let bad = Wishes {
            commit_interval_ms: Some(1),
            ..Wishes::default()
        };
        assert_eq!(field(bad), "commit_interval_ms");
        let bad = Wishes {
            copy_on_write_bytes: Some(u32::MAX),
            ..Wishes::default()
        };
        assert_eq!(field(bad), "copy_on_write_bytes");
        let bad = Wishes {
            page_cache_bytes: Some(u64::MAX),
            ..Wishes::default()
        };
        assert_eq!(field(bad), "page_cache_bytes");
    }
}
