//! Reading and writing open files, for one request at a time; many at once are in
//! [`super::io_stream`].

use bytes::Bytes;
use proto::errors::errno;

use crate::door::Written;
use crate::failure::{Failure, Result};
use crate::handles::OpenHandle;

pub fn check_readable(open: &OpenHandle) -> Result<()> {
    if open.flags.read {
        return Ok(());
    }
    Err(Failure::new(errno::EBADF, "the handle is not open for reading").handle(open.id))
}

pub fn check_writable(open: &OpenHandle) -> Result<()> {
    if open.flags.write {
        return Ok(());
    }
    Err(Failure::new(errno::EBADF, "the handle is not open for writing").handle(open.id))
}

/// Offsets are below 2^63, as Linux's are.
pub fn check_range(offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(Failure::new(
            errno::EFBIG,
            format!("{length} bytes at offset {offset} end beyond 2^63"),
        )),
    }
}

pub async fn read(open: &OpenHandle, offset: u64, length: usize) -> Result<Bytes> {
    let handle = open.id;
    open.file
        .call(move |file| async move { file.read(offset, length).await })
        .await
        .map_err(|failure| failure.handle(handle))
}

/// Everything that happened is in the answer, also that nothing did.
pub async fn write(open: &OpenHandle, offset: u64, data: Bytes, explain: bool) -> Written {
    let work = move |file: std::rc::Rc<dyn crate::door::OpenFile>| async move {
        Ok(file.write(offset, data, explain).await)
    };
    match open.file.call(work).await {
        Ok(written) => written,
        Err(failure) => Written::failed(offset, failure),
    }
}

pub async fn sync(open: &OpenHandle, data_only: bool) -> Result<()> {
    open.file
        .call(move |file| async move { file.fsync(data_only).await })
        .await
}
