use super::*;

#[test]
fn reads_what_was_written_across_chunks_and_regions() {
    let mut image = Image::empty(3 * REGION);
    let bytes: Vec<u8> = (0..3 * CHUNK).map(|index| (index % 251) as u8).collect();
    let offset = REGION - 700;
    image.write(offset, &bytes);
    assert_eq!(image.read_vec(offset, bytes.len()), bytes);
    assert_eq!(image.read_vec(offset - 1, 2), [0, bytes[0]]);
    image.fill(offset + 100, 2 * CHUNK as u64, 0);
    let mut expected = bytes;
    expected[100..100 + 2 * CHUNK].fill(0);
    assert_eq!(image.read_vec(offset, expected.len()), expected);
}

#[test]
fn copies_share_until_written() {
    let mut image = Image::empty(1 << 40);
    image.write(1 << 39, b"first");
    let copy = image.clone();
    image.write(1 << 39, b"other");
    assert_eq!(copy.read_vec(1 << 39, 5), b"first");
    assert_eq!(image.read_vec(1 << 39, 5), b"other");
    assert_eq!(image.first_difference(&copy), Some(1 << 39));
    image.write(1 << 39, b"first");
    assert_eq!(image, copy);
}

#[test]
fn zeroes_give_memory_back_and_equal_nothing() {
    let mut image = Image::empty(1 << 20);
    image.write(0, &[0; 4096]);
    assert_eq!(image, Image::empty(1 << 20));
    image.fill(0, 1 << 20, 9);
    image.fill(0, 1 << 20, 0);
    assert_eq!(image.stored_bytes(), 0);
    assert_ne!(image, Image::empty(2 << 20));
}

#[test]
fn shrinking_forgets() {
    let mut image = Image::from_bytes(&[5; 2048]);
    image.resize(1000);
    image.resize(2048);
    assert_eq!(image.read_vec(999, 2), [5, 0]);
}

#[test]
#[should_panic(expected = "outside an image")]
fn a_range_that_overflows_is_outside() {
    Image::empty(4096).read(u64::MAX - 10, &mut [0; 100]);
}

#[test]
fn files_round_trip_and_stay_sparse() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let mut image = Image::empty((64 << 20) + 512);
    image.write(10 << 20, &[1; 5000]);
    image.write((64 << 20) + 500, &[2; 12]);
    image.save(&path).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), image.size_bytes());
    assert!(metadata.blocks() * 512 < 1 << 20);
    assert_eq!(Image::load(&path).unwrap(), image);

    let mut next = image.clone();
    next.fill(0, 64 << 20, 0);
    next.write(77, b"new");
    next.resize(65 << 20);
    next.save_over(&path, &image).unwrap();
    assert_eq!(Image::load(&path).unwrap(), next);
    image.save_over(&path, &next).unwrap();
    assert_eq!(Image::load(&path).unwrap(), image);
}
