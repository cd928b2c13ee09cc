//! SPDK's environment: memory and processors, before anything of SPDK runs.

use std::ffi::CString;

use rustix::thread::{CpuSet, sched_getaffinity};
use spdk_sys as sys;

use crate::error::StartError;
use crate::log;
use crate::options::{Memory, Options, Reactors};

/// What SPDK needs in any case: its request and buffer pools.
const LEAST_MIB: u32 = 128;

/// What the environment is to be, found to be possible.
pub(crate) struct Prepared {
    name: CString,
    processors: CString,
    memory: Chosen,
    pci: bool,
}

struct Chosen {
    huge: bool,
    mib: i32,
}

/// Looks at the options and at the machine; starts nothing.
pub(crate) fn prepare(options: &Options) -> Result<Prepared, StartError> {
    let text = |text: String| {
        CString::new(text).map_err(|_| StartError::Options("a null byte in the name".to_owned()))
    };
    Ok(Prepared {
        name: text(options.name.clone())?,
        processors: text(processor_map(&options.reactors)?)?,
        memory: choose_memory(options.memory)?,
        pci: options.pci,
    })
}

pub(crate) fn start(prepared: &Prepared) -> Result<(), StartError> {
    let Prepared { memory, .. } = prepared;
    // `--in-memory`: pages come from anonymous files, so a killed process leaves none behind and no mount is needed.
    // The log level is DPDK's warning: its notices are about ports and drivers that we do not use.
    let arguments = if memory.huge {
        c"--in-memory --log-level=lib.eal:5"
    } else {
        c"--log-level=lib.eal:5"
    };
    let environment = sys::shim_env {
        name: prepared.name.as_ptr(),
        lcore_map: prepared.processors.as_ptr(),
        huge_dir: std::ptr::null(),
        dpdk_args: arguments.as_ptr(),
        memory_mib: memory.mib,
        no_huge: !memory.huge,
        // vfio-user controllers are given our memory as files: few large ones, not one a page.
        single_file_segments: memory.huge,
        no_pci: !prepared.pci || !memory.huge,
    };
    // SAFETY: the strings live during the call, which copies them.
    let rc = unsafe { sys::shim_env_init(&environment) };
    if rc == 0 {
        return Ok(());
    }
    Err(StartError::Environment {
        errno: rc.abs(),
        log: log::kept_errors(),
    })
}

fn choose_memory(memory: Memory) -> Result<Chosen, StartError> {
    let (Memory::Auto { mib } | Memory::HugePages { mib } | Memory::Ordinary { mib }) = memory;
    let as_i32 = i32::try_from(mib).map_err(|_| StartError::Options(format!("{mib} MiB")))?;
    if mib < LEAST_MIB {
        return Err(StartError::Options(format!(
            "{mib} MiB of memory (at least {LEAST_MIB} are needed)"
        )));
    }
    let free = free_huge_mib();
    match memory {
        Memory::Ordinary { .. } => Ok(Chosen {
            huge: false,
            mib: as_i32,
        }),
        _ if free >= mib => Ok(Chosen {
            huge: true,
            mib: as_i32,
        }),
        Memory::Auto { .. } => {
            tracing::info!(
                wanted_mib = mib,
                free_mib = free,
                "too few huge pages: SPDK uses ordinary memory (no NVMe over PCIe or vfio-user)"
            );
            Ok(Chosen {
                huge: false,
                mib: as_i32,
            })
        }
        Memory::HugePages { .. } => Err(StartError::NoHugePages {
            wanted_mib: mib,
            free_mib: free,
        }),
    }
}

/// Huge pages of the default size that are free, in MiB.
pub(crate) fn free_huge_mib() -> u32 {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return 0;
    };
    let field = |name: &str| -> u64 {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
    };
    let pages = field("HugePages_Free:").saturating_sub(field("HugePages_Rsvd:"));
    u32::try_from(pages.saturating_mul(field("Hugepagesize:")) / 1024).unwrap_or(u32::MAX)
}

/// Which processors each reactor may run on, in DPDK's words: `0@(0,1),1@(0,1)`, or pinned `0@2,1@3`.
fn processor_map(reactors: &Reactors) -> Result<String, StartError> {
    let allowed = sched_getaffinity(None).map_err(std::io::Error::from)?;
    let entries: Vec<String> = match reactors {
        Reactors::Floating(count) => {
            let all: Vec<String> = (0..CpuSet::MAX_CPU)
                .filter(|processor| allowed.is_set(*processor))
                .map(|processor| processor.to_string())
                .collect();
            let all = all.join(",");
            (0..*count)
                .map(|index| format!("{index}@({all})"))
                .collect()
        }
        Reactors::Pinned(processors) => {
            for (index, processor) in processors.iter().enumerate() {
                let number = *processor as usize;
                if number >= CpuSet::MAX_CPU || !allowed.is_set(number) {
                    return Err(StartError::Options(format!(
                        "processor {processor}, which this process may not use"
                    )));
                }
                if processors[..index].contains(processor) {
                    return Err(StartError::Options(format!(
                        "two reactors pinned to processor {processor}"
                    )));
                }
            }
            processors
                .iter()
                .enumerate()
                .map(|(index, processor)| format!("{index}@{processor}"))
                .collect()
        }
    };
    Ok(entries.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_refused_by_number() {
        let error = choose_memory(Memory::Auto { mib: 3 }).err().unwrap();
        assert!(error.to_string().contains("3 MiB"), "{error}");
    }

    #[test]
    fn more_huge_pages_than_any_machine_has() {
        let error = choose_memory(Memory::HugePages { mib: 1 << 30 })
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("spdk-config/hugepages"),
            "{error}"
        );
    }

    #[test]
    fn floating_reactors_share_the_processors() {
        let map = processor_map(&Reactors::Floating(2)).unwrap();
        let (first, second) = map.split_once(",1@").unwrap();
        assert_eq!(first.strip_prefix("0@").unwrap(), second);
    }

    #[test]
    fn one_processor_takes_one_pinned_reactor() {
        assert!(processor_map(&Reactors::Pinned(vec![0, 0])).is_err());
        assert!(processor_map(&Reactors::Pinned(vec![u32::MAX])).is_err());
    }
}
