"""Small documents as Word, LibreOffice, TextEdit and PDF printers write them, for tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STRICT_W = "http://purl.oclc.org/ooxml/wordprocessingml/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
MAIN_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"

#: Ids of styles are those of a German Word, whose names in the file are English.
STYLES = """
<w:style w:type="paragraph" w:styleId="Standard"><w:name w:val="Normal"/></w:style>
<w:style w:type="paragraph" w:styleId="Titel"><w:name w:val="Title"/></w:style>
<w:style w:type="paragraph" w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
<w:style w:type="paragraph" w:styleId="Zitat1"><w:name w:val="Quote"/></w:style>
<w:style w:type="paragraph" w:styleId="Eigen"><w:name w:val="Mein Stil"/>
<w:basedOn w:val="Zitat1"/></w:style>
<w:style w:type="paragraph" w:styleId="Verzeichnis1"><w:name w:val="toc 1"/></w:style>
<w:style w:type="character" w:styleId="ZitatZchn"><w:name w:val="Quote Char"/></w:style>
<w:style w:type="character" w:styleId="Platzhaltertext"><w:name w:val="Placeholder Text"/></w:style>
"""


def run(text: str, properties: str = "", tag: str = "w:t") -> str:
    """A run of WordprocessingML."""
    inner = f"<w:rPr>{properties}</w:rPr>" if properties else ""
    return f'<w:r>{inner}<{tag} xml:space="preserve">{text}</{tag}></w:r>'


def paragraph(*runs: str, style: str = "", properties: str = "") -> str:
    """A paragraph of WordprocessingML; text that is no element becomes a run."""
    named = f'<w:pStyle w:val="{style}"/>' if style else ""
    inner = "".join(r if r.startswith("<") else run(r) for r in runs)
    return f"<w:p><w:pPr>{named}{properties}</w:pPr>{inner}</w:p>"


def inserted(text: str, author: str) -> str:
    """A tracked insertion."""
    return f'<w:ins w:id="1" w:author="{author}" w:date="2024-03-06T10:00:00Z">{run(text)}</w:ins>'


def deleted(text: str, author: str) -> str:
    """A tracked deletion."""
    inner = run(text, tag="w:delText")
    return f'<w:del w:id="2" w:author="{author}" w:date="2024-03-06T10:00:00Z">{inner}</w:del>'


def docx(
    path: Path,
    body: str,
    *,
    creator: str = "Sam Me",
    editor: str | None = None,
    modified: str = "2024-03-05T14:22:10Z",
    title: str = "",
    main: str = "word/document.xml",
    strict: bool = False,
    template: bool = False,
    prolog: str = "",
    comments: tuple[str, ...] = (),
    **parts: str,
) -> Path:
    """Write a Word document: its body, and other parts (`footnotes`, `header1`) by their names."""
    kinds = {name: name.rstrip("0123456789") for name in parts}
    folder, _, name = main.rpartition("/")
    base = "http://purl.oclc.org/ooxml/officeDocument" if strict else OFFICE
    space = STRICT_W if strict else W
    root = (
        f'xmlns:w="{space}" xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    )
    files = {
        "_rels/.rels": f"""<Relationships xmlns="{PACKAGE}/relationships">
<Relationship Id="rId1" Type="{base}/relationships/officeDocument" Target="{main}"/>
<Relationship Id="rId2" Type="{PACKAGE}/relationships/metadata/core-properties"
 Target="docProps/core.xml"/></Relationships>""",
        "docProps/core.xml": f"""<cp:coreProperties
 xmlns:cp="{PACKAGE}/metadata/core-properties" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:dcterms="http://purl.org/dc/terms/"><dc:title>{title}</dc:title>
<dc:creator>{creator}</dc:creator>
<cp:lastModifiedBy>{creator if editor is None else editor}</cp:lastModifiedBy>
<dcterms:created>2024-03-01T09:00:00Z</dcterms:created>
<dcterms:modified>{modified}</dcterms:modified></cp:coreProperties>""",
        main: f"{prolog}<w:document {root}><w:body>{body}<w:sectPr/></w:body></w:document>",
        f"{folder}/styles.xml": f"<w:styles {root}>{STYLES}</w:styles>",
    }
    kinds["styles"] = "styles"
    if comments:
        kinds["comments"] = "comments"
        inner = "".join(
            f'<w:comment w:id="{n}" w:author="{who}">{paragraph("THEIRS comment")}</w:comment>'
            for n, who in enumerate(comments)
        )
        files[f"{folder}/comments.xml"] = f"<w:comments {root}>{inner}</w:comments>"
    for part, inner in parts.items():
        files[f"{folder}/{part}.xml"] = f"<w:{kinds[part]} {root}>{inner}</w:{kinds[part]}>"
    relations = "".join(
        f'<Relationship Id="r{n}" Type="{base}/relationships/{kind}" Target="{part}.xml"/>'
        for n, (part, kind) in enumerate(kinds.items())
    )
    files[f"{folder}/_rels/{name}.rels"] = (
        f'<Relationships xmlns="{PACKAGE}/relationships">{relations}</Relationships>'
    )
    kind = MAIN_TYPE.replace("document.main", "template.main") if template else MAIN_TYPE
    files["[Content_Types].xml"] = (
        f'<Types xmlns="{PACKAGE}/content-types">'
        f'<Override PartName="/{main}" ContentType="{kind}"/></Types>'
    )
    path.write_bytes(zipped(files))
    return path


ODF = "urn:oasis:names:tc:opendocument:xmlns"
_SPACES = " ".join(
    f'xmlns:{prefix}="{ODF}:{name}:1.0"'
    for prefix, name in {
        "office": "office", "text": "text", "style": "style", "table": "table", "draw": "drawing",
        "meta": "meta", "manifest": "manifest",
    }.items()
) + (
    ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xlink="http://www.w3.org/1999/xlink"'
    ' xmlns:svg="urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0"'
)  # fmt: skip


def change(name: str, kind: str, author: str, deleted_text: str = "") -> str:
    """A tracked change of OpenDocument; a deletion holds what was deleted, in paragraphs."""
    return (
        f'<text:changed-region xml:id="{name}" text:id="{name}"><text:{kind}><office:change-info>'
        f"<dc:creator>{author}</dc:creator><dc:date>2024-03-06T10:00:00</dc:date>"
        f"</office:change-info>{deleted_text}</text:{kind}></text:changed-region>"
    )


def odt(
    path: Path,
    body: str,
    *,
    creator: str = "Sam Me",
    editor: str | None = None,
    changes: str = "",
    styles: str = "",
    kind: str = "text",
    manifest: str = "",
) -> Path:
    """Write a text of OpenDocument, `.fodt` as one file."""
    meta = (
        f"<office:meta><meta:generator>LibreOffice/24.2</meta:generator>"
        f"<meta:initial-creator>{creator}</meta:initial-creator>"
        f"<dc:creator>{creator if editor is None else editor}</dc:creator>"
        "<meta:creation-date>2024-03-01T09:00:00</meta:creation-date>"
        "<dc:date>2024-03-05T14:22:10.123456789</dc:date></office:meta>"
    )
    tracked = f"<text:tracked-changes>{changes}</text:tracked-changes>" if changes else ""
    content = (
        f"<office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:{'text' if 'text' in kind else kind}>{tracked}{body}"
        f"</office:{'text' if 'text' in kind else kind}></office:body>"
    )
    if path.suffix == ".fodt":
        path.write_text(f"<office:document {_SPACES}>{meta}{content}</office:document>")
        return path
    named = (
        '<style:style style:name="Quotations" style:family="paragraph"/>'
        '<style:style style:name="Mine" style:parent-style-name="Quotations"/>'
    )
    path.write_bytes(zipped({
        "mimetype": f"application/vnd.oasis.opendocument.{kind}",
        "META-INF/manifest.xml": f"<manifest:manifest {_SPACES}>{manifest}</manifest:manifest>",
        "meta.xml": f"<office:document-meta {_SPACES}>{meta}</office:document-meta>",
        "styles.xml": f"<office:document-styles {_SPACES}>{named}</office:document-styles>",
        "content.xml": f"<office:document-content {_SPACES}>{content}</office:document-content>",
    }))  # fmt: skip
    return path


def zipped(files: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with those files, of the 5th of March 2024."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (2024, 3, 5, 14, 22, 10))
            entry.compress_type = method
            archive.writestr(entry, data)
    return buffer.getvalue()


def pdf(path: Path, pages: list[list[str]], **info: str) -> Path:
    """Write a PDF with a page a list of lines; `info` are its properties, such as `Author`."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b""]
    kids = []
    for lines in pages:
        shown = b"".join(
            b"(" + line.encode("cp1252").replace(b"(", rb"\(").replace(b")", rb"\)") + b") Tj T*\n"
            for line in lines
        )
        stream = b"BT /F1 12 Tf 14 TL 50 750 Td\n" + shown + b"ET"
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    objects[2] = (
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
    )
    entries = b" ".join(b"/%s (%s)" % (k.encode(), v.encode("cp1252")) for k, v in info.items())
    objects.append(b"<< %s >>" % entries)
    data, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    path.write_bytes(
        data + b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
        + b"trailer << /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF"
        % (len(objects) + 1, len(objects), len(data))
    )  # fmt: skip
    return path
