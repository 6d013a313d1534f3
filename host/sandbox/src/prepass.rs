//! The look at a file before the compiler sees it: counts of everything that makes compiling dear, each with its cap.
//!
//! It only counts. Whether the file is valid is the compiler's affair; whether compiling it ends is the caller's, who bounds memory and
//! time from outside. The caps turn what no toolchain makes into a refusal that names the count, in milliseconds instead of minutes.
//!
//! Where the caps come from: the largest files that toolchains make are CPython with its libraries composed into one component
//! (18 MB: about 20,000 functions in some ten modules, and the engine's 100 core instances) and SpiderMonkey (12 MB). Each cap is
//! several times what those have. What remains is dear but bounded: 50,000 empty functions took 2.3 s and 292 MB to compile.

use wasmparser::{FunctionBody, Operator, Parser, Payload};

use crate::LoadError;

/// What is counted over the whole file, with its cap.
#[derive(Clone, Copy, Debug)]
struct Cap {
    what: &'static str,
    most: u64,
}

/// Functions, over all modules of the file: ten times what 20,000 of CPython and its libraries come near.
const FUNCTIONS: Cap = Cap { what: "functions", most: 200_000 };
/// Locals of one function, parameters not counted: interpreters' main loops have some hundreds.
const LOCALS: Cap = Cap { what: "locals in one function", most: 10_000 };
/// Blocks within blocks: a compiled `switch` nests one for each case, and Go one for each point of resumption.
const BLOCKS: Cap = Cap { what: "blocks nested in one function", most: 10_000 };
/// Loops within loops. Nested loops over many locals are what makes a small file compile for minutes; people nest a handful.
const LOOPS: Cap = Cap { what: "loops nested in one function", most: 100 };
/// One function's code in bytes: the largest known, interpreters' main loops, have some 300 KB.
const BODY: Cap = Cap { what: "bytes of code in one function", most: 4 << 20 };
const TYPES: Cap = Cap { what: "types", most: 100_000 };
const IMPORTS: Cap = Cap { what: "imports", most: 100_000 };
/// CPython's libraries export every symbol, some 10,000 each.
const EXPORTS: Cap = Cap { what: "exports", most: 200_000 };
const GLOBALS: Cap = Cap { what: "globals", most: 100_000 };
/// The engine gives an instance four at most.
const MEMORIES: Cap = Cap { what: "memories", most: 64 };
const TABLES: Cap = Cap { what: "tables", most: 256 };
const SEGMENTS: Cap = Cap { what: "data and element segments", most: 200_000 };
/// The engine makes 100 core instances at most; a module that no instance uses is still compiled.
const MODULES: Cap = Cap { what: "modules", most: 200 };
const COMPONENTS: Cap = Cap { what: "components", most: 200 };
const INSTANCES: Cap = Cap { what: "instances", most: 2_000 };
/// Aliases and canonical functions: one for each function that crosses a boundary.
const ALIASES: Cap = Cap { what: "aliases and canonical functions", most: 200_000 };
/// Composing nests once for each step.
const DEPTH: Cap = Cap { what: "components nested in one another", most: 20 };

impl Cap {
    fn check(self, count: u64) -> Result<(), LoadError> {
        if count > self.most {
            return Err(LoadError::TooMuch { count, what: self.what, most: self.most });
        }
        Ok(())
    }
}

/// Sums that run over the whole file.
#[derive(Default)]
struct Counts(Vec<(&'static str, u64)>);

impl Counts {
    fn add(&mut self, cap: Cap, more: u32) -> Result<(), LoadError> {
        let place = match self.0.iter().position(|(what, _)| *what == cap.what) {
            Some(place) => place,
            None => {
                self.0.push((cap.what, 0));
                self.0.len() - 1
            }
        };
        let Some((_, count)) = self.0.get_mut(place) else { return Ok(()) };
        *count += u64::from(more);
        cap.check(*count)
    }
}

/// Counts, and refuses the first thing that there is too much of. Takes time in proportion to the file.
///
/// # Errors
/// [`LoadError::TooMuch`] with the count and the cap; [`LoadError::Malformed`] when the file cannot be read so far.
pub(crate) fn prepass(wasm: &[u8]) -> Result<(), LoadError> {
    let mut counts = Counts::default();
    let mut depth = 0u64;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::TypeSection(section) => counts.add(TYPES, section.count())?,
            Payload::CoreTypeSection(section) => counts.add(TYPES, section.count())?,
            Payload::ComponentTypeSection(section) => counts.add(TYPES, section.count())?,
            Payload::ImportSection(section) => counts.add(IMPORTS, section.count())?,
            Payload::ComponentImportSection(section) => counts.add(IMPORTS, section.count())?,
            Payload::ExportSection(section) => counts.add(EXPORTS, section.count())?,
            Payload::ComponentExportSection(section) => counts.add(EXPORTS, section.count())?,
            Payload::FunctionSection(section) => counts.add(FUNCTIONS, section.count())?,
            Payload::TableSection(section) => counts.add(TABLES, section.count())?,
            Payload::MemorySection(section) => counts.add(MEMORIES, section.count())?,
            Payload::GlobalSection(section) => counts.add(GLOBALS, section.count())?,
            Payload::ElementSection(section) => counts.add(SEGMENTS, section.count())?,
            Payload::DataSection(section) => counts.add(SEGMENTS, section.count())?,
            Payload::CodeSectionEntry(body) => function(&body)?,
            Payload::InstanceSection(section) => counts.add(INSTANCES, section.count())?,
            Payload::ComponentInstanceSection(section) => counts.add(INSTANCES, section.count())?,
            Payload::ComponentAliasSection(section) => counts.add(ALIASES, section.count())?,
            Payload::ComponentCanonicalSection(section) => counts.add(ALIASES, section.count())?,
            Payload::ModuleSection { .. } => {
                counts.add(MODULES, 1)?;
                depth += 1;
            }
            Payload::ComponentSection { .. } => {
                counts.add(COMPONENTS, 1)?;
                depth += 1;
                DEPTH.check(depth)?;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            // Of constant cost, or refused by the compiler.
            _ => {}
        }
    }
    Ok(())
}

fn function(body: &FunctionBody<'_>) -> Result<(), LoadError> {
    BODY.check(body.range().len() as u64)?;
    let mut locals = 0u64;
    for group in body.get_locals_reader().map_err(malformed)? {
        locals += u64::from(group.map_err(malformed)?.0);
        LOCALS.check(locals)?;
    }
    // The open blocks, each with whether it is a loop.
    let mut open = Vec::new();
    let mut loops = 0u64;
    for operator in body.get_operators_reader().map_err(malformed)? {
        match operator.map_err(malformed)? {
            Operator::Loop { .. } => {
                open.push(true);
                loops += 1;
                LOOPS.check(loops)?;
            }
            Operator::Block { .. } | Operator::If { .. } | Operator::TryTable { .. } => open.push(false),
            Operator::End => loops -= u64::from(open.pop() == Some(true)),
            _ => {}
        }
        BLOCKS.check(open.len() as u64)?;
    }
    Ok(())
}

pub(crate) fn malformed(error: wasmparser::BinaryReaderError) -> LoadError {
    LoadError::Malformed { text: error.message().to_owned(), offset: error.offset() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        let wasm = wat::parse_str(text).unwrap();
        prepass(&wasm).map_or_else(|error| error.to_string(), |()| String::from("fine"))
    }

    #[test]
    fn each_cap_names_its_count() {
        assert_eq!(of(r#"(module (func (export "_start") (loop (block (loop)))))"#), "fine");
        assert!(
            of(&format!("(module (func (local {})))", "i32 ".repeat(10_001))).contains("10001 locals in one function")
        );
        let nested = |word: &str, times: usize| {
            format!("(module (func {}{}))", format!("({word} ").repeat(times), ")".repeat(times))
        };
        assert_eq!(of(&nested("loop", 100)), "fine");
        assert!(of(&nested("loop", 101)).contains("101 loops nested in one function"));
        let flat = "(module (func ".to_owned() + &"block ".repeat(10_001) + &"end ".repeat(10_001) + "))";
        assert!(of(&flat).contains("10001 blocks nested"));
        let deep = format!("{}{}", "(component ".repeat(22), ")".repeat(22));
        assert!(of(&deep).contains("components nested in one another"));
        assert!(of(&format!("(component {})", "(core module) ".repeat(201))).contains("201 modules"));
    }

    #[test]
    fn loops_after_one_another_are_not_nested() {
        assert_eq!(of(&format!("(module (func {}))", "(loop) ".repeat(5_000))), "fine");
    }

    #[test]
    fn a_count_that_the_file_does_not_have_is_refused_before_it_is_believed() {
        // A type section that claims 2^32 - 1 types in five bytes.
        let claims = b"\0asm\x01\0\0\0\x01\x05\xff\xff\xff\xff\x0f";
        assert!(prepass(claims).unwrap_err().to_string().contains("types"));
        let cut = b"\0asm\x01\0\0\0\x01\x05";
        assert!(prepass(cut).unwrap_err().to_string().contains("offset"));
    }
}
