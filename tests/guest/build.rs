//! Links the guest as a static kernel image at 2 MiB instead of a program for the host.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo:rerun-if-changed={dir}/guest.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        &format!("-Wl,-T,{dir}/guest.ld"),
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
