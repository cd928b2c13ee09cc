//! How a structure is laid over bytes: the one place where slices become references to typed bytes.
//!
//! Every structure of this crate is made of byte-order integers and byte arrays, so it has alignment 1 and every bit
//! pattern is a value of it: seeing bytes as a structure needs no check but the length. A slice that is too short is a
//! mistake of the caller (a block has at least 512 bytes), hence a panic; counts *read from* the bytes are bounded here,
//! so that no value on disk can make a view reach outside its block.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What every structure over bytes can do.
pub(crate) trait Plain: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned {}
impl<T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned> Plain for T {}

/// The start of `bytes` as a `T`.
#[track_caller]
pub(crate) fn prefix<T: Plain>(bytes: &[u8]) -> &T {
    match T::ref_from_prefix(bytes) {
        Ok((value, _)) => value,
        Err(_) => too_short(size_of::<T>(), bytes.len()),
    }
}

/// The start of `bytes` as a `T`, to change.
#[track_caller]
pub(crate) fn prefix_mut<T: Plain>(bytes: &mut [u8]) -> &mut T {
    let len = bytes.len();
    match T::mut_from_prefix(bytes) {
        Ok((value, _)) => value,
        Err(_) => too_short(size_of::<T>(), len),
    }
}

/// A header `H` at the start of `area` and as many of the `count` records `R` behind it as the area holds.
#[track_caller]
pub(crate) fn list<H: Plain, R: Plain>(area: &[u8], count: impl Fn(&H) -> usize) -> (&H, &[R]) {
    let (head, rest) = area.split_at(size_of::<H>().min(area.len()));
    let header: &H = prefix(head);
    let records = count(header).min(rest.len() / size_of::<R>());
    (header, records_of(&rest[..records * size_of::<R>()]))
}

/// [`list`], to change.
#[track_caller]
pub(crate) fn list_mut<H: Plain, R: Plain>(
    area: &mut [u8],
    count: impl Fn(&H) -> usize,
) -> (&mut H, &mut [R]) {
    let (head, rest) = area.split_at_mut(size_of::<H>().min(area.len()));
    let header: &mut H = prefix_mut(head);
    let records = count(header).min(rest.len() / size_of::<R>());
    (
        header,
        records_of_mut(&mut rest[..records * size_of::<R>()]),
    )
}

/// Bytes whose length is a multiple of `T` as records.
pub(crate) fn records_of<T: Plain>(bytes: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(bytes)
        .expect("the length is a multiple of the record and the alignment is 1")
}

/// [`records_of`], to change.
pub(crate) fn records_of_mut<T: Plain>(bytes: &mut [u8]) -> &mut [T] {
    <[T]>::mut_from_bytes(bytes)
        .expect("the length is a multiple of the record and the alignment is 1")
}

#[cold]
#[track_caller]
fn too_short(wanted: usize, got: usize) -> ! {
    panic!("a structure of {wanted} bytes does not fit into a slice of {got}")
}

/// Gives a structure that opens a block its `of` and `of_mut`.
macro_rules! over_block {
    ($name:ident) => {
        impl $name {
            /// The start of `block` as this structure.
            ///
            /// # Panics
            /// If `block` is shorter than the structure: a mistake of the caller, not of the disk.
            #[track_caller]
            pub fn of(block: &[u8]) -> &Self {
                $crate::access::prefix(block)
            }

            /// The start of `block` as this structure, to change.
            ///
            /// # Panics
            /// If `block` is shorter than the structure: a mistake of the caller, not of the disk.
            #[track_caller]
            pub fn of_mut(block: &mut [u8]) -> &mut Self {
                $crate::access::prefix_mut(block)
            }
        }
    };
}
pub(crate) use over_block;

/// Asserts, when the crate is compiled, the size of a structure and the offsets of its fields.
macro_rules! layout {
    ($name:ty, $size:literal $(, $field:ident @ $offset:literal)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            assert!(align_of::<$name>() == 1);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}
pub(crate) use layout;
