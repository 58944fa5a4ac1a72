"""Sphinx reads this to make the slides: reveal.js by sphinx-revealjs, math as in the book."""

project = "The Two Effects of Dropout"
# tools/build_slides.py has put book/_ext, where offline_math lives, on the path.
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx_revealjs", "offline_math"]
myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
# As in the book: an unknown command shows as an error, which the tests find.
mathjax3_config = {"tex": {"packages": {"[-]": ["noundefined", "noerrors"]}}}

revealjs_style_theme = "white"
revealjs_static_path = ["_static"]
revealjs_css_files = ["slides.css"]
revealjs_notes_from_comments = True
revealjs_use_section_ids = True
revealjs_script_plugins = [
    {"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"},
]
revealjs_script_conf = {
    "hash": True,
    "slideNumber": "c/t",
    "transition": "none",
    "center": False,
    "width": 1200,
    "height": 675,
    "margin": 0.04,
}
