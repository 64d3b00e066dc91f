"""Codes of languages: what clients call them, and what models do. Pure.

Clients of LibreTranslate send two letters ("de"), Marian's models of many languages know three
("deu"), NLLB has three and a script ("deu_Latn"), mBART two and a country ("de_DE").
"""

from __future__ import annotations

from collections.abc import Iterable

_NAMES = """
af afr_Latn Afrikaans|am amh_Ethi Amharic|ar arb_Arab Arabic|az azj_Latn Azerbaijani
be bel_Cyrl Belarusian|bg bul_Cyrl Bulgarian|bn ben_Beng Bengali|bs bos_Latn Bosnian
ca cat_Latn Catalan|cs ces_Latn Czech|cy cym_Latn Welsh|da dan_Latn Danish|de deu_Latn German
el ell_Grek Greek|en eng_Latn English|eo epo_Latn Esperanto|es spa_Latn Spanish
et est_Latn Estonian|eu eus_Latn Basque|fa pes_Arab Persian|fi fin_Latn Finnish
fr fra_Latn French|ga gle_Latn Irish|gl glg_Latn Galician|gu guj_Gujr Gujarati
ha hau_Latn Hausa|he heb_Hebr Hebrew|hi hin_Deva Hindi|hr hrv_Latn Croatian|hu hun_Latn Hungarian
hy hye_Armn Armenian|id ind_Latn Indonesian|is isl_Latn Icelandic|it ita_Latn Italian
ja jpn_Jpan Japanese|ka kat_Geor Georgian|kk kaz_Cyrl Kazakh|km khm_Khmr Khmer
kn kan_Knda Kannada|ko kor_Hang Korean|ky kir_Cyrl Kyrgyz|lo lao_Laoo Lao|lt lit_Latn Lithuanian
lv lvs_Latn Latvian|mk mkd_Cyrl Macedonian|ml mal_Mlym Malayalam|mn khk_Cyrl Mongolian
mr mar_Deva Marathi|ms zsm_Latn Malay|mt mlt_Latn Maltese|my mya_Mymr Burmese
nb nob_Latn Norwegian|ne npi_Deva Nepali|nl nld_Latn Dutch|pa pan_Guru Punjabi|pl pol_Latn Polish
ps pbt_Arab Pashto|pt por_Latn Portuguese|ro ron_Latn Romanian|ru rus_Cyrl Russian
si sin_Sinh Sinhala|sk slk_Latn Slovak|sl slv_Latn Slovenian|so som_Latn Somali
sq als_Latn Albanian|sr srp_Cyrl Serbian|sv swe_Latn Swedish|sw swh_Latn Swahili|ta tam_Taml Tamil
te tel_Telu Telugu|th tha_Thai Thai|tl tgl_Latn Tagalog|tr tur_Latn Turkish|uk ukr_Cyrl Ukrainian
ur urd_Arab Urdu|uz uzn_Latn Uzbek|vi vie_Latn Vietnamese|xh xho_Latn Xhosa|yo yor_Latn Yoruba
zh zho_Hans Chinese|zt zho_Hant Chinese (traditional)|zu zul_Latn Zulu
"""
_ROWS = [row.split(" ", 2) for row in _NAMES.replace("\n", "|").split("|") if row.strip()]
_LONG = {short: long for short, long, _ in _ROWS}
_SHORT = {long: short for short, long, _ in _ROWS} | {
    long.partition("_")[0]: short for short, long, _ in reversed(_ROWS) if short != "zt"
}
_NAME = {short: name for short, _, name in _ROWS}
_ALIASES = {"no": "nb", "iw": "he", "in": "id", "zh-hans": "zh", "zh-hant": "zt", "zh-tw": "zt"}


def short_of(code: str) -> str:
    """What clients call a model's language: "de" for "deu_Latn"; as it is where it isn't known."""
    if code in _SHORT:
        return _SHORT[code]
    first, _, rest = code.partition("_")
    return first if rest.isupper() and len(first) == 2 else code


def name_of(code: str) -> str:
    """In English; the code where it isn't known."""
    return _NAME.get(short_of(code), code)


def matching(given: str, known: Iterable[str]) -> str | None:
    """The language of a model that a client means by ``given``; None: it has none like it."""
    codes = list(known)
    if given in codes:
        return given
    wanted = given.lower()
    wanted = _ALIASES.get(wanted, wanted if wanted in _LONG else wanted.partition("-")[0])
    for code in (_LONG.get(wanted, ""), _LONG.get(wanted, "").partition("_")[0]):
        if code and code in codes:
            return code
    return next((code for code in codes if short_of(code) == wanted), None)
