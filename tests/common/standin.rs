//! A stand-in for NVIDIA's driver and CUDA's libraries, compiled by g++ from the kernels themselves, so that
//! the unchanged engine computes on a machine without a card.
#![allow(dead_code)] // each test file uses its own part of this one

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// Set in programs that have a card before them, or the stand-in.
const INSIDE: &str = "STANDIN_INSIDE";

/// The folder of the stand-in's libraries; none, said aloud, where there is no g++.
pub fn folder() -> Option<PathBuf> {
    static ONCE: OnceLock<Option<PathBuf>> = OnceLock::new();
    ONCE.get_or_init(found_or_built).clone()
}

fn found_or_built() -> Option<PathBuf> {
    if Command::new("g++").arg("--version").output().is_err() {
        eprintln!("NOT TESTED, the engine on cuda: there is no g++ to compile the stand-in with");
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (own, kernels) = (root.join("tests/standin"), root.join("src/engine/cuda/kernels"));
    let mut files: Vec<PathBuf> = [&own, &kernels].into_iter().flat_map(|f| list(f)).collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    files.iter().for_each(|file| fs::read(file).expect("a source file").hash(&mut hasher));
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let done = tmp.join(format!("standin-{:x}", hasher.finish()));
    if !done.is_dir() {
        // Whoever is first; another one's is as good.
        let made = tempfile::tempdir_in(tmp).expect("a temporary folder").keep();
        build(&own, &kernels, &made);
        let _another_was_first = fs::rename(made, &done);
    }
    Some(done)
}

fn list(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

fn build(own: &Path, kernels: &Path, to: &Path) {
    let include = |path: &Path| format!("#include \"{}\"\n", path.display());
    let mut text = include(&own.join("emulate.hpp")) + &include(&kernels.join("common.cu"));
    let mut files = list(kernels);
    files.sort();
    for file in files.iter().filter(|file| !file.ends_with("common.cu")) {
        text += &include(file);
    }
    text += "static std::map<std::string, emulate::Kernel> KERNELS = {\n";
    for name in files.iter().flat_map(|file| names(&fs::read_to_string(file).expect("kernels"))) {
        text += &format!("  {{\"{name}\", emulate::kernel_of({name})}},\n");
    }
    text += "};\n";
    text += &include(&own.join("driver.cpp"));
    let driver = to.join("driver_with_kernels.cpp");
    fs::write(&driver, text).expect("written");
    compile(&driver, &to.join("libcuda.so"));
    compile(&own.join("blas.cpp"), &to.join("libcublasLt.so"));
    compile(&own.join("compiler.cpp"), &to.join("libnvrtc.so"));
}

/// Names of the kernels in a source file.
fn names(text: &str) -> Vec<String> {
    let heads = text.lines().filter_map(|line| line.strip_prefix("extern \"C\" __global__ void "));
    let name = |head: &str| {
        let head = head.strip_prefix("__launch_bounds__(OWN) ").unwrap_or(head);
        head.split('(').next().expect("a name").to_owned()
    };
    heads.map(name).collect()
}

fn compile(source: &Path, library: &Path) {
    let flags = "-O3 -ffp-contract=off -std=c++17 -w -shared -fPIC -fno-strict-aliasing -U_FORTIFY_SOURCE -Wl,-Bsymbolic -ldl";
    let mut command = Command::new("g++");
    command.args(flags.split(' ')).arg(source).arg("-o").arg(library);
    let output = command.output().expect("g++ runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Puts the libraries in `folder` before a program.
pub fn before<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command.env("LD_LIBRARY_PATH", folder).env(INSIDE, "1")
}

/// Whether this is a program with the stand-in before it. Otherwise runs test `name` of this program in one
/// and fails as it does.
pub fn inside(name: &str) -> bool {
    inside_with(name, &[])
}

/// [`inside`] with settings of the stand-in.
pub fn inside_with(name: &str, settings: &[(&str, &str)]) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let Some(folder) = folder() else { return false };
    let mut command = Command::new(env::current_exe().expect("this program"));
    let command = before(command.args(["--exact", name, "--nocapture"]), &folder);
    let output = command.envs(settings.iter().copied()).output();
    let output = output.expect("it runs");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}
