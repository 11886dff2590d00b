//! Writes every program that an Intel GPU would be given, as NAME.cl and NAME.options, for offline compilers:
//! `sources FOLDER LANES [matrix]`.

use std::process::ExitCode;
use std::{env, fs, io, path::Path};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (folder, lanes, matrix) = match arguments.as_slice() {
        [folder, lanes] => (folder, lanes.parse(), false),
        [folder, lanes, matrix] if matrix == "matrix" => (folder, lanes.parse(), true),
        _ => (&String::new(), "".parse(), false),
    };
    let Ok(lanes) = lanes else {
        eprintln!("usage: sources FOLDER LANES [matrix]");
        return ExitCode::from(2);
    };
    match write(Path::new(folder), lanes, matrix) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, lanes: usize, matrix: bool) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for program in moe_opencl::offline::intel_gpu(lanes, matrix) {
        fs::write(folder.join(format!("{}.cl", program.name)), program.text)?;
        fs::write(folder.join(format!("{}.options", program.name)), program.options)?;
    }
    Ok(())
}
