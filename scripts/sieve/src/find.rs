//! Which small changes can be made to a source file: each is a place (bytes of the file) and what stands there
//! instead. Nothing is looked up: a change whose types do not fit is dropped when the compiler complains.
//!
//! Left out is what no run can see or what must be constant: tests, patterns, types, constants, `const fn`,
//! attributes, macros with what is in them (assertions, logging), and implementations of `Debug`, `Display` and `Error`.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use std::ops::Range;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, ReturnType, Stmt, Type, UnOp};

/// How a change is woven into its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The statement may be left out.
    Statement,
    /// Another expression may stand there.
    Expression,
    /// The function may return something at once: the place is empty, behind its brace.
    Body,
}

/// A change that may be made.
#[derive(Clone, Debug)]
pub struct Mutation {
    pub kind: Kind,
    /// Bytes of the original file.
    pub place: Range<usize>,
    /// Line of the original file, from 1.
    pub line: usize,
    /// What stands there instead, on one line; of a statement nothing.
    pub instead: String,
    /// The functions and modules around it.
    pub within: String,
    /// Bytes of the function around it.
    pub function: Range<usize>,
    /// What is changed into what, for people.
    pub words: String,
}

/// All changes of a file, in order of their places; an error is one of its syntax.
pub fn mutations(text: &str) -> Result<Vec<Mutation>, String> {
    let file = syn::parse_file(text).map_err(|e| format!("{}: {e}", e.span().start().line))?;
    let mut finder = Finder { found: Vec::new(), within: Vec::new(), functions: Vec::new() };
    finder.visit_file(&file);
    let mut found = finder.found;
    found.sort_by_key(|m| (m.place.start, std::cmp::Reverse(m.place.end), m.kind));
    Ok(found)
}

/// Names of modules of a file that are compiled for tests alone.
pub fn test_modules(text: &str) -> Vec<String> {
    let Ok(file) = syn::parse_file(text) else { return Vec::new() };
    let modules = file.items.iter().filter_map(|item| match item {
        syn::Item::Mod(m) if m.content.is_none() && for_tests(&m.attrs) => {
            Some(m.ident.to_string())
        }
        _ => None,
    });
    modules.collect()
}

fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        let text = a.to_token_stream().to_string();
        text.contains("cfg") && (text.contains("test") || text.contains("debug_assertions"))
            || a.path().is_ident("test")
    })
}

struct Finder {
    found: Vec<Mutation>,
    within: Vec<String>,
    functions: Vec<Range<usize>>,
}

/// On one line, without comments.
fn one_line(tokens: &impl ToTokens) -> String {
    tokens.to_token_stream().to_string()
}

fn short(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= 70 {
        text
    } else {
        text.chars().take(67).collect::<String>() + "..."
    }
}

/// A condition with a pattern in it can be no value.
fn has_let(e: &Expr) -> bool {
    match e {
        Expr::Let(_) => true,
        Expr::Binary(b) if matches!(b.op, BinOp::And(_)) => has_let(&b.left) || has_let(&b.right),
        _ => false,
    }
}

impl Finder {
    fn add(&mut self, kind: Kind, of: &impl Spanned, instead: String, words: String) {
        let span = of.span();
        let place = match kind {
            Kind::Body => span.byte_range().start + 1..span.byte_range().start + 1,
            _ => span.byte_range(),
        };
        let Some(function) = self.functions.last().cloned() else { return };
        self.found.push(Mutation {
            kind,
            place,
            line: span.start().line,
            instead,
            within: self.within.join("::"),
            function,
            words,
        });
    }

    fn expression(&mut self, of: &Expr, instead: &TokenStream) {
        let words = format!("{} => {}", short(&one_line(of)), short(&one_line(instead)));
        self.add(Kind::Expression, of, one_line(instead), words);
    }

    fn condition(&mut self, of: &Expr, values: &[bool]) {
        if has_let(of) || matches!(of, Expr::Lit(_)) {
            return;
        }
        for value in values {
            self.expression(of, &quote!(#value));
        }
    }

    /// What a function that returns this may return at once.
    fn returns(output: &ReturnType) -> Vec<TokenStream> {
        match output {
            ReturnType::Default => vec![quote!(())],
            ReturnType::Type(_, t) => values(t),
        }
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        if signature.constness.is_some() {
            return;
        }
        self.within.push(signature.ident.to_string());
        self.functions.push(block.span().byte_range());
        if !block.stmts.is_empty() {
            for value in Self::returns(&signature.output) {
                if block.stmts.len() == 1 && one_line(&block.stmts[0]) == one_line(&value) {
                    continue;
                }
                let words =
                    format!("fn {} returns {} at once", signature.ident, short(&one_line(&value)));
                self.add(Kind::Body, block, one_line(&value), words);
            }
        }
        if matches!(signature.output, ReturnType::Default)
            && let Some(Stmt::Expr(last, None)) = block.stmts.last()
        {
            self.statement(last, last);
        }
        visit::visit_block(self, block);
        self.functions.pop();
        self.within.pop();
    }

    /// A statement that is there for its effect can be left out.
    fn statement(&mut self, of: &impl Spanned, e: &Expr) {
        let effect = match e {
            Expr::MethodCall(_) | Expr::Assign(_) => true,
            Expr::Try(t) => matches!(*t.expr, Expr::MethodCall(_) | Expr::Call(_)),
            Expr::Call(c) => one_line(&c.func) != "drop",
            Expr::Binary(b) => assigns(&b.op),
            _ => false,
        };
        if effect {
            let words = format!("`{}` left out", short(&one_line(e)));
            self.add(Kind::Statement, of, String::new(), words);
        }
    }
}

fn assigns(op: &BinOp) -> bool {
    use BinOp::{
        AddAssign, BitAndAssign, BitOrAssign, BitXorAssign, DivAssign, MulAssign, RemAssign,
        ShlAssign, ShrAssign, SubAssign,
    };
    matches!(
        op,
        AddAssign(_)
            | SubAssign(_)
            | MulAssign(_)
            | DivAssign(_)
            | RemAssign(_)
            | BitXorAssign(_)
            | BitAndAssign(_)
            | BitOrAssign(_)
            | ShlAssign(_)
            | ShrAssign(_)
    )
}

/// Simple values of a type.
fn values(t: &Type) -> Vec<TokenStream> {
    let Type::Path(path) = t else {
        return match t {
            Type::Tuple(tuple) if tuple.elems.is_empty() => vec![quote!(())],
            Type::Tuple(_) => vec![quote!(Default::default())],
            _ => vec![],
        };
    };
    let Some(last) = path.path.segments.last() else { return vec![] };
    let inner = || match &last.arguments {
        syn::PathArguments::AngleBracketed(a) => a.args.iter().find_map(|a| match a {
            syn::GenericArgument::Type(t) => Some(t),
            _ => None,
        }),
        _ => None,
    };
    match last.ident.to_string().as_str() {
        "bool" => vec![quote!(true), quote!(false)],
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" | "i32" | "i64" => {
            vec![quote!(0), quote!(1)]
        }
        "Option" => vec![quote!(None)],
        "Result" => inner()
            .map(|t| values(t).into_iter().map(|v| quote!(Ok(#v))).collect())
            .unwrap_or_default(),
        "Self" => vec![],
        _ => vec![quote!(Default::default())],
    }
}

impl<'a> Visit<'a> for Finder {
    fn visit_item_mod(&mut self, m: &'a syn::ItemMod) {
        if !for_tests(&m.attrs) {
            self.within.push(m.ident.to_string());
            visit::visit_item_mod(self, m);
            self.within.pop();
        }
    }

    fn visit_item_impl(&mut self, i: &'a syn::ItemImpl) {
        let of = i
            .trait_
            .as_ref()
            .and_then(|(_, path, _)| path.segments.last())
            .map(|s| s.ident.to_string());
        let shown = of.is_some_and(|name| ["Debug", "Display", "Error"].contains(&name.as_str()));
        if !shown && !for_tests(&i.attrs) {
            self.within.push(one_line(&i.self_ty));
            visit::visit_item_impl(self, i);
            self.within.pop();
        }
    }

    fn visit_item_fn(&mut self, f: &'a syn::ItemFn) {
        if !for_tests(&f.attrs) {
            self.function(&f.sig, &f.block);
        }
    }

    fn visit_impl_item_fn(&mut self, f: &'a syn::ImplItemFn) {
        if !for_tests(&f.attrs) {
            self.function(&f.sig, &f.block);
        }
    }

    fn visit_trait_item_fn(&mut self, f: &'a syn::TraitItemFn) {
        if let Some(block) = &f.default {
            self.function(&f.sig, block);
        }
    }

    fn visit_item_const(&mut self, _: &'a syn::ItemConst) {}
    fn visit_impl_item_const(&mut self, _: &'a syn::ImplItemConst) {}
    fn visit_item_static(&mut self, _: &'a syn::ItemStatic) {}
    fn visit_item_enum(&mut self, _: &'a syn::ItemEnum) {}
    fn visit_expr_const(&mut self, _: &'a syn::ExprConst) {}
    fn visit_type(&mut self, _: &'a Type) {}
    fn visit_pat(&mut self, _: &'a syn::Pat) {}
    fn visit_attribute(&mut self, _: &'a syn::Attribute) {}
    fn visit_macro(&mut self, _: &'a syn::Macro) {}
    fn visit_generic_argument(&mut self, _: &'a syn::GenericArgument) {}

    fn visit_expr_repeat(&mut self, e: &'a syn::ExprRepeat) {
        self.visit_expr(&e.expr);
    }

    fn visit_stmt(&mut self, s: &'a Stmt) {
        if let Stmt::Expr(e, Some(_)) = s {
            self.statement(s, e);
        }
        visit::visit_stmt(self, s);
    }

    fn visit_arm(&mut self, a: &'a syn::Arm) {
        if let Some((_, guard)) = &a.guard {
            self.condition(guard, &[true, false]);
        }
        visit::visit_arm(self, a);
    }

    fn visit_expr(&mut self, e: &'a Expr) {
        match e {
            Expr::If(i) => self.condition(&i.cond, &[true, false]),
            Expr::While(w) => self.condition(&w.cond, &[false]),
            Expr::Unary(u) if matches!(u.op, UnOp::Not(_)) => {
                let inner = &u.expr;
                self.expression(e, &quote!(#inner));
            }
            Expr::Binary(b) if !has_let(e) => {
                let (l, r) = (&b.left, &b.right);
                let other = match b.op {
                    BinOp::Eq(_) => Some(quote!((#l) != (#r))),
                    BinOp::Ne(_) => Some(quote!((#l) == (#r))),
                    BinOp::Lt(_) => Some(quote!((#l) <= (#r))),
                    BinOp::Le(_) => Some(quote!((#l) < (#r))),
                    BinOp::Gt(_) => Some(quote!((#l) >= (#r))),
                    BinOp::Ge(_) => Some(quote!((#l) > (#r))),
                    BinOp::And(_) => Some(quote!((#l) || (#r))),
                    BinOp::Or(_) => Some(quote!((#l) && (#r))),
                    BinOp::Add(_) => Some(quote!((#l) - (#r))),
                    BinOp::Sub(_) => Some(quote!((#l) + (#r))),
                    BinOp::AddAssign(_) => Some(quote!(#l -= #r)),
                    BinOp::SubAssign(_) => Some(quote!(#l += #r)),
                    _ => None,
                };
                if let Some(other) = other {
                    self.expression(e, &other);
                }
            }
            Expr::MethodCall(m) => {
                let other = match m.method.to_string().as_str() {
                    "min" => Some("max"),
                    "max" => Some("min"),
                    "any" => Some("all"),
                    "all" => Some("any"),
                    "is_some" => Some("is_none"),
                    "is_none" => Some("is_some"),
                    _ => None,
                };
                if let Some(other) = other {
                    let mut changed = m.clone();
                    changed.method = syn::Ident::new(other, m.method.span());
                    self.expression(e, &quote!(#changed));
                }
            }
            Expr::Lit(l) => {
                if let syn::Lit::Int(n) = &l.lit
                    && let Ok(value @ 0..=1000) = n.base10_parse::<u64>()
                {
                    let more: TokenStream =
                        format!("{}{}", value + 1, n.suffix()).parse().unwrap_or_default();
                    self.expression(e, &more);
                }
            }
            _ => {}
        }
        visit::visit_expr(self, e);
    }
}
