//! One file's bytes from the daemon: a `Read` stream, which the daemon reads ahead of. Long runs of
//! zeros become holes in local files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proto::v1::{ReadRequest, ReadResponse};
use tonic::Streaming;

use super::{CHUNK_BYTES, Copying, blocking};
use crate::error::{About, AboutFile, Result};
use crate::output::Output;
use crate::path::Remote;

/// Zeros shorter than this are written.
const HOLE_BYTES: usize = 64 << 10;

async fn start(
    copying: &mut Copying,
    handle: u64,
    path: &Remote,
) -> Result<Streaming<ReadResponse>> {
    let request = ReadRequest {
        handle,
        offset: 0,
        length: None,
        chunk_bytes: CHUNK_BYTES as u32,
    };
    Ok(copying
        .client
        .files
        .read(request)
        .await
        .about(path)?
        .into_inner())
}

/// Writes a file to standard output.
pub async fn to_output(copying: &mut Copying, path: &Remote, output: &mut Output) -> Result<()> {
    let handle = copying.open_to_read(path).await?;
    let mut chunks = start(copying, handle, path).await?;
    while let Some(chunk) = chunks.message().await.about(path)? {
        copying.progress.add(chunk.data.len() as u64);
        blocking(|| output.bytes(&chunk.data));
    }
    copying.close(handle, path).await
}

/// Writes an open file into a new, empty local one.
pub async fn to_file(
    copying: &mut Copying,
    handle: u64,
    path: &Remote,
    file: &File,
    local: &Path,
) -> Result<()> {
    let mut chunks = start(copying, handle, path).await?;
    let mut end = 0;
    while let Some(chunk) = chunks.message().await.about(path)? {
        blocking(|| write_sparse(file, chunk.offset, &chunk.data)).about_file(local)?;
        end = chunk.offset + chunk.data.len() as u64;
        copying.progress.add(chunk.data.len() as u64);
    }
    blocking(|| file.set_len(end)).about_file(local)
}

/// Writes what is not zero; the file is all hole before.
fn write_sparse(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut pending: Option<usize> = None;
    let write = |from: usize, to: usize| file.write_all_at(&data[from..to], offset + from as u64);
    for start in (0..data.len()).step_by(HOLE_BYTES) {
        let piece = &data[start..data.len().min(start + HOLE_BYTES)];
        let hole = piece.len() == HOLE_BYTES && piece.iter().all(|&byte| byte == 0);
        match (hole, pending) {
            (true, Some(from)) => {
                write(from, start)?;
                pending = None;
            }
            (false, None) => pending = Some(start),
            _ => {}
        }
    }
    match pending {
        Some(from) => write(from, data.len()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn holes_do_not_change_the_content() {
        let mut data = vec![0u8; 5 * HOLE_BYTES + 100];
        data[HOLE_BYTES + 1] = 1;
        data[3 * HOLE_BYTES] = 2;
        for skew in [0, 7] {
            let mut file = tempfile::tempfile().unwrap();
            write_sparse(&file, 0, &data[..skew]).unwrap();
            write_sparse(&file, skew as u64, &data[skew..]).unwrap();
            file.set_len(data.len() as u64).unwrap();
            let mut back = Vec::new();
            file.read_to_end(&mut back).unwrap();
            assert!(back == data, "skew {skew}");
        }
    }
}
