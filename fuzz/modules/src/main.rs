//! Writes the module of each input of the target `guest`: `modules FROM TO`, two folders. So what was found can be kept without what
//! made it.

use std::path::Path;
use std::{env, fs};

#[path = "../../smith.rs"]
mod smith;

fn main() -> std::io::Result<()> {
    let [from, to] = env::args().skip(1).collect::<Vec<_>>().try_into().expect("usage: modules FROM TO");
    for file in fs::read_dir(from)? {
        let file = file?;
        if let Some(module) = smith::module(&fs::read(file.path())?) {
            fs::write(Path::new(&to).join(file.file_name()), module)?;
        }
    }
    Ok(())
}
