//! The modulefile: how users of Lmod get the package into their shell.
//!
//! `templates/modulefile.lua` is rendered with the package's facts; a value that the template does not know, or that
//! nobody gave, is an error. Values go into Lua source, so each passes the filter `lua`, which makes a quoted
//! Lua string of it (Lua 5.1 reference manual, section 2.1, which all later versions keep).
//!
//! Where the package lies is found when the module is loaded, not here: the file is the same in every installation.

use super::{Facts, PackageError, PackageName, layout};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use std::fmt::Write as _;

const TEMPLATE: &str = include_str!("../../templates/modulefile.lua");

/// The modulefile of a package.
pub fn render(name: &PackageName, facts: &Facts) -> Result<String, PackageError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_filter("lua", |text: String| quote(&text));
    environment.add_template("modulefile.lua", TEMPLATE).map_err(PackageError::Template)?;
    let help = format!(
        "Slurm {} (asked for as {}), built with GCC {} for {}.\n\nSets PATH, MANPATH, CMAKE_PREFIX_PATH, PKG_CONFIG_PATH, \
         SLURM_ROOT and SLURM_PREFIX.\nSet SLURM_INSTALL_PREFIX before loading when the package lies elsewhere than \
         its modulefile.",
        one_line(&facts.slurm.release),
        one_line(&facts.slurm.requested),
        one_line(&facts.compiler.release),
        one_line(&facts.toolchain),
    );
    let values = context! {
        help,
        label => one_line(&name.label()),
        slurm_release => one_line(&facts.slurm.release),
        compiler_release => one_line(&facts.compiler.release),
        tool_version => one_line(&facts.tool.version),
        toolchain => one_line(&facts.toolchain),
        layout_view => layout::VIEW,
        layout_modules => layout::MODULES,
        module_name => layout::MODULE_NAME,
    };
    let rendered = environment.get_template("modulefile.lua").and_then(|t| t.render(values));
    // The template's last line end is taken for the file's own, and dropped.
    rendered.map(|text| text + "\n").map_err(PackageError::Template)
}

/// Some values stand in comments, which end with their line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A Lua string literal.
fn quote(text: &str) -> String {
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
            assert_eq!(quote(text), want);
        }
    }

    #[test]
    fn every_value_of_the_template_is_given() {
        let name = PackageName { version: "25.11".into(), compiler: "13.4.0".into() };
        let mut facts = Facts::default();
        facts.slurm.release = "25.11.6\nos.exit()".into();
        let text = render(&name, &facts).unwrap();
        assert!(!text.contains("{{") && !text.contains("\nos.exit()"), "{text}");
        assert!(!text.contains("LD_LIBRARY_PATH\""), "{text}");
    }
}
