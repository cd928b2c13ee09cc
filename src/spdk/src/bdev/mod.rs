//! Block devices: opening and listing them, and making them at run time.

mod create;
mod device;
mod request;
mod status;

use std::ffi::{c_int, c_void};

use spdk_sys as sys;

pub use create::{Attach, BdevAdmin, InjectedError, NvmeAddress};
pub use device::{Access, Bdev};

use device::copied;

/// A block device that could be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    /// What kind it is, in SPDK's words: `Malloc disk`, `AIO disk`, `NVMe disk` …
    pub product: String,
    /// In bytes.
    pub block_size: u32,
    pub block_count: u64,
}

/// All block devices. On a reactor's thread.
pub fn list() -> Vec<Listed> {
    let mut found: Vec<Listed> = Vec::new();
    if crate::reactor::on_reactor() {
        // SAFETY: on an SPDK thread; `on_one` is called during this call only, with the list.
        unsafe { sys::spdk_for_each_bdev(std::ptr::from_mut(&mut found).cast(), Some(on_one)) };
    }
    found
}

unsafe extern "C" fn on_one(context: *mut c_void, bdev: *mut sys::spdk_bdev) -> c_int {
    // SAFETY: `list` passes its own list, and SPDK a device that stays while this runs.
    unsafe {
        (*context.cast::<Vec<Listed>>()).push(Listed {
            name: copied(sys::spdk_bdev_get_name(bdev)),
            product: copied(sys::spdk_bdev_get_product_name(bdev)),
            block_size: sys::spdk_bdev_get_block_size(bdev),
            block_count: sys::spdk_bdev_get_num_blocks(bdev),
        });
    }
    0
}
