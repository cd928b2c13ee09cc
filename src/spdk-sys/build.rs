//! Finds SPDK by pkg-config, compiles the shim, writes the bindings, and says how to link.
//!
//! SPDK is linked statically and whole: bdev modules, subsystems, transports, sockets and RPC methods enter
//! themselves into lists from constructors, and a linker that takes only what is referenced would leave them out.

use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

/// The oldest release whose interface the shim and the `spdk` crate are written against: major, minor.
const OLDEST: (u32, u32) = (26, 1);

/// What we start from; pkg-config adds what these need. `spdk_event_*` are the subsystems.
const ROOTS: [&str; 7] = [
    "spdk_event_bdev",
    "spdk_event_nvmf",
    "spdk_event_sock",
    "spdk_event_vmd",
    "spdk_event_keyring",
    "spdk_env_dpdk",
    "spdk_syslibs",
];

/// What pkg-config names and we do not link: SPDK's own reactors, and what moves threads between them. Ours take their
/// place.
const REPLACED: [&str; 2] = ["spdk_event", "spdk_event_scheduler"];

/// SPDK's own code that pkg-config does not name from the roots.
const BESIDE: [&str; 2] = ["spdk_env_dpdk_rpc", "spdk_keyring_file"];

fn main() {
    for watched in [
        "shim/shim.c",
        "shim/shim.h",
        "shim/export.c",
        "shim/export.h",
        "build.rs",
    ] {
        println!("cargo:rerun-if-changed={watched}");
    }
    for watched in ["SPDK_PREFIX", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={watched}");
    }
    let prefix = env::var("SPDK_PREFIX").unwrap_or_else(|_| "/opt/spdk".to_owned());
    let found = find(&prefix).unwrap_or_else(|why| fail(&prefix, &why));
    let include = include_folder(&found).unwrap_or_else(|| fail(&prefix, "no spdk/version.h"));
    // A newer or rebuilt SPDK under the same name must not be linked with old bindings.
    println!(
        "cargo:rerun-if-changed={}",
        include.join("spdk/version.h").display()
    );
    println!("cargo:rerun-if-changed={prefix}/share/ocelot/spdk.manifest");
    match version(&include) {
        Some(version) if version >= OLDEST => {}
        Some((major, minor)) => fail(&prefix, &format!("it is SPDK {major}.{minor:02}")),
        None => fail(&prefix, "its version.h states no version"),
    }
    link(&found);
    compile_shim(&include);
    bind(&include);
}

fn find(prefix: &str) -> Result<Vec<pkg_config::Library>, String> {
    let mut path = env::var("PKG_CONFIG_PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(':');
    }
    path.push_str(&format!("{prefix}/lib/pkgconfig"));
    // SAFETY: a build script's `main` has one thread.
    unsafe { env::set_var("PKG_CONFIG_PATH", path) };
    ROOTS
        .iter()
        .chain(&BESIDE)
        .map(|name| {
            pkg_config::Config::new()
                .cargo_metadata(false)
                .env_metadata(true)
                .print_system_libs(false)
                .print_system_cflags(true)
                .probe(name)
                .map_err(|error| {
                    let text = error.to_string();
                    let line = text.lines().find(|line| !line.trim().is_empty());
                    format!("pkg-config knows no {name}: {}", line.unwrap_or("?"))
                })
        })
        .collect()
}

fn include_folder(found: &[pkg_config::Library]) -> Option<PathBuf> {
    found
        .iter()
        .flat_map(|library| &library.include_paths)
        .find(|folder| folder.join("spdk/version.h").exists())
        .cloned()
}

fn version(include: &Path) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(include.join("spdk/version.h")).ok()?;
    let number = |name: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let defines = words.next() == Some("#define") && words.next() == Some(name);
            defines.then(|| words.next()?.parse().ok()).flatten()
        })
    };
    Some((number("SPDK_VERSION_MAJOR")?, number("SPDK_VERSION_MINOR")?))
}

/// What SPDK and DPDK register by constructor must be linked whole. `-bundle`: the final linker reads the archives
/// where they are, instead of a copy in each rlib.
fn link(found: &[pkg_config::Library]) {
    let mut folders: Vec<&PathBuf> = found
        .iter()
        .flat_map(|library| &library.link_paths)
        .collect();
    folders.sort();
    folders.dedup();
    for folder in &folders {
        println!("cargo:rustc-link-search=native={}", folder.display());
    }
    let is_static = |name: &str| {
        folders
            .iter()
            .any(|f| f.join(format!("lib{name}.a")).exists())
    };
    let mut names: Vec<&str> = Vec::new();
    for name in found.iter().flat_map(|library| &library.libs) {
        if !names.contains(&name.as_str()) && !REPLACED.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let registers = |name: &str| name.starts_with("spdk_") || name.starts_with("rte_");
    for name in names.iter().filter(|name| registers(name)) {
        println!("cargo:rustc-link-lib=static:+whole-archive,-bundle={name}");
    }
    for name in names.iter().filter(|name| !registers(name)) {
        if *name == VFIO_USER && is_static(name) {
            guard_vfio_user(&folders);
        } else if is_static(name) {
            println!("cargo:rustc-link-lib=static:-bundle={name}");
        } else {
            println!("cargo:rustc-link-lib=dylib={name}");
        }
    }
}

const VFIO_USER: &str = "vfio-user";

/// Links libvfio-user with its `munmap` going to the shim, which keeps a host's memory mapped while requests are in it.
fn guard_vfio_user(folders: &[&PathBuf]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let archive = folders
        .iter()
        .map(|folder| folder.join(format!("lib{VFIO_USER}.a")))
        .find(|archive| archive.exists())
        .expect("it was found before");
    let guarded = out.join("libocelot_vfio_user.a");
    let done = std::process::Command::new(env::var("OBJCOPY").unwrap_or("objcopy".to_owned()))
        .arg("--redefine-sym=munmap=ocelot_host_munmap")
        .args([&archive, &guarded])
        .status();
    if !done.as_ref().is_ok_and(|status| status.success()) {
        eprintln!(
            "objcopy (package binutils) on {}: {done:?}",
            archive.display()
        );
        exit(1);
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=ocelot_vfio_user");
}

fn compile_shim(include: &Path) {
    cc::Build::new()
        .file("shim/shim.c")
        .file("shim/export.c")
        .include(include)
        .warnings(true)
        .extra_warnings(true)
        .flag_if_supported("-Wno-unused-parameter")
        .compile("ocelot_spdk_shim");
}

fn bind(include: &Path) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindgen::Builder::default()
        .header("shim/shim.h")
        .clang_arg(format!("-I{}", include.display()))
        .allowlist_function("shim_.*")
        .allowlist_type("shim_export_(event|kind)")
        .allowlist_function("spdk_env_(fini|get_.*|thread_.*)")
        .allowlist_function("spdk_dma_(malloc|zmalloc|free)|spdk_get_ticks(_hz)?")
        .allowlist_function("spdk_(get|set)_thread|spdk_(get|put)_io_channel")
        .allowlist_function("spdk_thread_(lib_.*|create|exit|is_.*|destroy|poll|has_.*|get_(name|cpumask|app_thread))")
        .allowlist_function("spdk_thread_(send_msg|next_poller_expiration|get_from_ctx)")
        .allowlist_function("spdk_cpuset_(get_cpu|set_cpu|zero|alloc|free)")
        .allowlist_function("spdk_subsystem_(init|fini|exists)")
        .allowlist_function("spdk_rpc_(initialize|finish|server_(listen|accept|close)|set_state|get_state)")
        .allowlist_function("spdk_rpc_get_method_state_mask|spdk_log_(set_level|close)")
        .allowlist_function("spdk_for_each_bdev|spdk_bdev_wait_for_examine")
        .allowlist_function("spdk_bdev_(open_ext|close|desc_get_bdev|io_type_supported|has_write_cache|is_zoned)")
        .allowlist_function("spdk_bdev_get_(name|product_name|module_name|block_size|num_blocks|buf_align|io_channel)")
        .allowlist_function("spdk_bdev_get_(md_size|uuid|physical_block_size|write_unit_size)")
        .allowlist_function("spdk_bdev_(read|readv|write|writev|flush|unmap|write_zeroes)_blocks")
        .allowlist_function("spdk_bdev_(reset|queue_io_wait|free_io|io_get_nvme_status|io_get_aio_status)")
        .allowlist_var("SPDK_RPC_(STARTUP|RUNTIME)")
        // Used by pointer only: their fields are the shim's business, and some of them (packed bit fields) cannot be
        // described to Rust.
        .opaque_type("spdk_nvme_.*|spdk_env_opts|spdk_bdev_opts|spdk_iobuf_opts|spdk_cpuset|spdk_uuid")
        .opaque_type("shim_export|spdk_bdev|spdk_bdev_io|spdk_bdev_desc|spdk_thread|spdk_io_channel|spdk_rpc_opts")
        .no_copy("spdk_bdev_io_wait_entry")
        .default_enum_style(bindgen::EnumVariation::ModuleConsts)
        .layout_tests(true)
        .derive_default(true)
        .generate_comments(false)
        .formatter(bindgen::Formatter::None)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .expect("SPDK's headers parse (is libclang installed? spdk-config/install installs it)")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR can be written");
}

fn fail(prefix: &str, why: &str) -> ! {
    let (major, minor) = OLDEST;
    println!(
        "cargo:warning=SPDK {major}.{minor:02} or newer is needed and was not found under {prefix}: {why}"
    );
    println!(
        "cargo:warning=run spdk-config/install (as root; it needs some minutes), or set SPDK_PREFIX or PKG_CONFIG_PATH to an SPDK you have"
    );
    eprintln!("SPDK not found: {why}. Run spdk-config/install, or set SPDK_PREFIX.");
    exit(1);
}
