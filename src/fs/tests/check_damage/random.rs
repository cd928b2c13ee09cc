//! Damages at random.

use super::*;

/// Blocks of an image that hold metadata.
fn metadata(bench: &Bench) -> Vec<u64> {
    const SIGNATURES: [&[u8]; 7] = [
        b"INODE01", b"EXBLK01", b"GROUP01", b"XATTR01", b"DXDIR01", b"DXLEAF1", b"REFCNT1",
    ];
    (3..bench.geometry.total_blocks())
        .filter(|&nr| {
            let bytes = bench.block(nr);
            let trailer = &bytes[bytes.len() - 48..];
            SIGNATURES.iter().any(|sign| bytes.starts_with(sign)) || trailer.starts_with(b"DIRTRL1")
        })
        .collect()
}

/// Damage that no checksum shows, at random: the checker ends, and does not panic.
#[test]
fn random_damage_is_survived() {
    const NO_CHECKSUMS: &str = "sparse,unwritten,inline-data,extended-slotmap,nometaecc,xattr,indexed-dirs,refcount,discontig-bg";
    let benches = [
        furnish(4096, 4096, 48, NO_CHECKSUMS),
        furnish(512, 4096, 48, NO_CHECKSUMS),
    ];
    let places = benches.each_ref().map(metadata);
    let (mut found, mut refused, mut clean) = (0, 0, 0);
    for seed in seeds(400) {
        let which = seed as usize % benches.len();
        let mut bench = benches[which].clone();
        let mut rng = SimRng::new(seed);
        for _ in 0..=rng.below(4) {
            let nr = places[which][rng.below(places[which].len() as u64) as usize];
            let mut bytes = bench.block(nr);
            let width = [1, 2, 4, 8][rng.below(4) as usize];
            let at = rng.below((bytes.len() / width) as u64) as usize * width;
            let other = places[which][rng.below(places[which].len() as u64) as usize];
            let value = match rng.below(5) {
                0 => 0,
                1 => u64::MAX,
                2 => other,
                3 => rng.below(300),
                _ => rng.next_u64(),
            };
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            bench.put(nr, &bytes);
        }
        let begun = std::time::Instant::now();
        match check_image(&bench.image) {
            Ok(checked) if checked.findings.is_empty() => clean += 1,
            Ok(_) => found += 1,
            Err(_) => refused += 1,
        }
        assert!(
            begun.elapsed().as_secs() < 30,
            "OCELOT_SEED={seed} takes too long"
        );
    }
    println!("{found} with findings, {clean} without, {refused} refused");
    assert!(found > clean);
}
