//! The modulefiles: how users of Lmod and of Environment Modules get the package into their shell.
//!
//! ```text
//! modules/slurm/25.11-gcc13.4.0.lua                         Lmod
//! modules/slurm/25.11-gcc13.4.0                             Environment Modules (Tcl), the same results
//! modules/slurm/.modulerc.lua                               which one `slurm` means
//! hierarchy/Core/gcc/13.4.0.lua                             opens what this compiler has built
//! hierarchy/Compiler/gcc/13.4.0/slurm/25.11.lua             the same Slurm, for sites with a hierarchy
//! hierarchy/Compiler/gcc/13.4.0/openmpi/5.0.7.lua           when the package has one: opens hierarchy/MPI/...
//! ```
//!
//! A compiler's package has `modules/gcc/13.4.0.lua`. There is a Tcl file without suffix beside each `.lua`. Templates are rendered with the package's facts; a value that a
//! template does not know, or that nobody gave, is an error. Values go into Lua and Tcl source, so each passes a filter
//! that makes a quoted string of it: `lua` (Lua 5.1 reference manual, section 2.1, which all later versions keep), `tcl`
//! (Tcl(n), rules 4 and 9).
//!
//! Where the package lies is found when the module is loaded, not here: the files are the same in every installation.

use super::manifest::Version;
use super::{CompilerName, Facts, Named, PackageError, PackageName, layout};
use crate::fsutil;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const TEMPLATES: [(&str, &str); 9] = [
    ("modulefile.lua", include_str!("../../templates/modulefile.lua")),
    ("modulefile.tcl", include_str!("../../templates/modulefile.tcl")),
    ("compiler.lua", include_str!("../../templates/compiler.lua")),
    ("compiler.tcl", include_str!("../../templates/compiler.tcl")),
    // Part of the four above.
    ("view.lua", include_str!("../../templates/view.lua")),
    ("view.tcl", include_str!("../../templates/view.tcl")),
    ("modulerc.lua", include_str!("../../templates/modulerc.lua")),
    ("hierarchy.lua", include_str!("../../templates/hierarchy.lua")),
    ("hierarchy.tcl", include_str!("../../templates/hierarchy.tcl")),
];

/// MPI packages that a hierarchy opens a level for.
const MPI: [&str; 3] = ["openmpi", "mpich", "mvapich"];

/// The two languages: template suffix, and what is put behind a module's name.
const LANGUAGES: [(&str, &str); 2] = [("lua", ".lua"), ("tcl", "")];

/// All modulefiles of a package: name in the archive, content.
pub fn files(name: &PackageName, facts: &Facts) -> Result<Vec<(PathBuf, String)>, PackageError> {
    let environment = environment()?;
    let gcc = part(&name.compiler);
    let mut files = Vec::new();
    let slurm = layout::MODULE_NAME;
    let flat = Path::new(layout::MODULES).join(slurm);
    let compiler = Path::new("Compiler").join("gcc").join(&gcc);
    // Lmod reads a `.modulerc` in Tcl as well, and fails where its path has blanks: there is none. For Environment
    // Modules the only version in a folder is the default.
    let default = context! { name => slurm, module => format!("{slurm}/{}", name.label()) };
    files.push((flat.join(".modulerc.lua"), render_one(&environment, "modulerc", "lua", default)?));
    for (language, suffix) in LANGUAGES {
        let file = |module: &Path| PathBuf::from(format!("{}{suffix}", module.display()));
        let module = flat.join(name.label());
        files.push((file(&module), slurm_module(&environment, language, name, facts, &module)?));
        // MODULEPATH is given the folders below `hierarchy`, so paths in the templates start there.
        let hierarchy = Path::new(layout::HIERARCHY);
        let below = |module: &Path| (file(&hierarchy.join(module)), module.to_owned());
        let (path, module) = below(&Path::new("Core").join("gcc").join(&gcc));
        let what = format!("GCC {}", one_line(&facts.compiler.release));
        files.push((path, level(&environment, language, facts, &module, "compiler", &what, &compiler, false)?));
        let (path, module) = below(&compiler.join(slurm).join(part(&name.version)));
        files.push((path, slurm_module(&environment, language, name, facts, &hierarchy.join(module))?));
        for mpi in facts.packages.iter().filter(|p| MPI.contains(&p.name.as_str())) {
            let version = part(&mpi.version);
            let (path, module) = below(&compiler.join(&mpi.name).join(&version));
            let opens = Path::new("MPI").join("gcc").join(&gcc).join(&mpi.name).join(&version);
            let what = format!("{} {}", mpi.name, one_line(&mpi.version));
            files.push((path, level(&environment, language, facts, &module, "mpi", &what, &opens, true)?));
        }
    }
    Ok(files)
}

/// All modulefiles of a compiler's package.
pub fn compiler_files(name: &CompilerName, facts: &Facts) -> Result<Vec<(PathBuf, String)>, PackageError> {
    let environment = environment()?;
    let version = part(&name.0);
    let module = Path::new(layout::MODULES).join(layout::COMPILER_MODULE).join(&version);
    let release = one_line(&facts.compiler.release);
    let help = format!(
        "GCC {release} (C, C++, Fortran) with its assembler and linker, built on {}.\n\nSets PATH, MANPATH and GCC_ROOT. What \
         it links finds the compiler's libraries where the compiler lies.",
        one_line(&facts.toolchain),
    );
    let default =
        context! { name => layout::COMPILER_MODULE, module => format!("{}/{version}", layout::COMPILER_MODULE) };
    let modulerc = fsutil::parent_of(&module).join(".modulerc.lua");
    let mut files = vec![(modulerc, render_one(&environment, "modulerc", "lua", default)?)];
    for (language, suffix) in LANGUAGES {
        let values = context! {
            help => help.as_str(),
            release => release.as_str(),
            label => one_line(&name.label()),
            tool_version => one_line(&facts.tool.version),
            toolchain => one_line(&facts.toolchain),
            layout_view => layout::VIEW,
            place => one_line(&module.to_string_lossy()),
            depth => module.components().count(),
        };
        let file = PathBuf::from(format!("{}{suffix}", module.display()));
        files.push((file, render_one(&environment, "compiler", language, values)?));
    }
    Ok(files)
}

/// What users type, once the modules are in `MODULEPATH`.
pub fn load(facts: &Facts) -> String {
    match &facts.slurm {
        Some(_) => format!("module load {}", layout::MODULE_NAME),
        None => format!("module load {}/{}", layout::COMPILER_MODULE, part(&facts.compiler.release)),
    }
}

/// What users of the hierarchy type, once its `Core` is in `MODULEPATH`.
pub fn load_in_hierarchy(facts: &Facts) -> String {
    let (gcc, slurm) = (part(&facts.compiler.release), part(&slurm_of(facts).requested));
    format!("module load gcc/{gcc} {}/{slurm}", layout::MODULE_NAME)
}

fn environment() -> Result<Environment<'static>, PackageError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_filter("lua", |text: String| quote_lua(&text));
    environment.add_filter("tcl", |text: String| quote_tcl(&text));
    for (name, text) in TEMPLATES {
        environment.add_template(name, text).map_err(PackageError::Template)?;
    }
    Ok(environment)
}

fn render_one(
    environment: &Environment<'_>,
    template: &str,
    language: &str,
    values: minijinja::Value,
) -> Result<String, PackageError> {
    let rendered = environment.get_template(&format!("{template}.{language}")).and_then(|t| t.render(values));
    // The template's last line end is taken for the file's own, and dropped.
    rendered.map(|text| text + "\n").map_err(PackageError::Template)
}

/// Which Slurm it is.
fn slurm_of(facts: &Facts) -> Version {
    facts.slurm.clone().unwrap_or_default()
}

/// Slurm's own module, at `place` in the package (without suffix).
fn slurm_module(
    environment: &Environment<'_>,
    language: &str,
    name: &PackageName,
    facts: &Facts,
    place: &Path,
) -> Result<String, PackageError> {
    let slurm = slurm_of(facts);
    let help = format!(
        "Slurm {} (asked for as {}), built with GCC {} for {}.\n\nSets PATH, MANPATH, CMAKE_PREFIX_PATH, \
         SLURM_ROOT and SLURM_PREFIX.\nSet SLURM_INSTALL_PREFIX before loading when the package lies elsewhere than \
         its modulefile.",
        one_line(&slurm.release),
        one_line(&slurm.requested),
        one_line(&facts.compiler.release),
        one_line(&facts.toolchain),
    );
    let values = context! {
        help,
        label => one_line(&name.label()),
        slurm_release => one_line(&slurm.release),
        compiler_release => one_line(&facts.compiler.release),
        tool_version => one_line(&facts.tool.version),
        toolchain => one_line(&facts.toolchain),
        layout_view => layout::VIEW,
        place => one_line(&place.to_string_lossy()),
        depth => place.components().count(),
    };
    render_one(environment, "modulefile", language, values)
}

/// A module that opens a level of the hierarchy. `module` and `opens` are relative to the hierarchy's folder.
#[allow(clippy::too_many_arguments)]
fn level(
    environment: &Environment<'_>,
    language: &str,
    facts: &Facts,
    module: &Path,
    family: &str,
    what: &str,
    opens: &Path,
    in_view: bool,
) -> Result<String, PackageError> {
    let last = |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let values = context! {
        what,
        family,
        in_view,
        module_name => one_line(&last(module.parent())),
        module_version => one_line(&last(Some(module))),
        tool_version => one_line(&facts.tool.version),
        layout_view => layout::VIEW,
        place => one_line(&module.to_string_lossy()),
        opens => opens.to_string_lossy(),
        // From the file up to the package's folder.
        depth => module.components().count() + 1,
    };
    render_one(environment, "hierarchy", language, values)
}

/// A version as one part of a path.
fn part(version: &str) -> String {
    one_line(version).replace('/', "_")
}

/// Some values stand in comments, which end with their line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A Tcl word in double quotes, in which nothing is substituted.
fn quote_tcl(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' | '$' | '[' | ']' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A Lua string literal.
fn quote_lua(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\{:03}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_string() {
        for (text, want) in [
            ("plain", r#""plain""#),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("a\nb\0\u{7f}1", r#""a\nb\000\1271""#),
            ("]] .. os.exit() .. [[", r#""]] .. os.exit() .. [[""#),
            ("ü", "\"ü\""),
        ] {
            assert_eq!(quote_lua(text), want);
        }
        assert_eq!(quote_tcl("a\"b\\c$d[exit]{e}\n"), r#""a\"b\\c\$d\[exit\]\{e\}\n""#);
    }

    #[test]
    fn every_value_of_the_template_is_given() {
        let name = PackageName { version: "25.11".into(), compiler: "13.4.0".into() };
        let version = |release: &str| Version { release: release.into(), ..Version::default() };
        let mut facts = Facts {
            slurm: Some(version("25.11.6\nos.exit()")),
            compiler: version("13.4.0\nos.exit()"),
            ..Facts::default()
        };
        let mpi = crate::package::manifest::Installed {
            name: "openmpi".into(),
            version: "5.0.7".into(),
            hash: "x".into(),
            ..Default::default()
        };
        facts.packages.push(mpi);
        let mut files = files(&name, &facts).unwrap();
        assert_eq!(files.len(), 9);
        files.extend(compiler_files(&CompilerName("13.4.0".into()), &facts).unwrap());
        assert_eq!(files.len(), 12);
        for (path, text) in files {
            assert!(!text.contains("{{") && !text.contains("{%") && !text.contains("\nos.exit()"), "{path:?}: {text}");
            assert!(!text.contains("LD_LIBRARY_PATH\""), "{path:?}: {text}");
        }
    }
}
