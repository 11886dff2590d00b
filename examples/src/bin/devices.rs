//! Lists the devices of this machine by their names for `--device`: `devices`.

fn main() {
    for line in moe_examples::device::list() {
        println!("{line}");
    }
}
