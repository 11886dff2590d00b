//! Prints the checksum of the layer that `freestanding` runs, from a program with std.

#[path = "../../src/layer.rs"]
mod layer;

fn main() {
    match layer::checksum() {
        Ok(checksum) => print!("{}", core::str::from_utf8(&layer::hex(checksum)).expect("hex digits")),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
