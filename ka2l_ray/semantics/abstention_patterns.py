"""How answers decline, clause by clause: "I do not know", "no information", "unknown"; in English and other languages."""

# ruff: noqa: RUF001 (letters of other alphabets look like ours)
from __future__ import annotations

import unicodedata


def any_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


def word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD = r"[\w'%-]+"
"""Of a sentence that declines: "up-to-date" and "100%" too."""
_TELL = any_of(
    "say tell know determine provide answer identify give find verify locate confirm pinpoint specify ascertain state name list"
    " infer deduce conclude calculate compute estimate judge assess discern decide establish respond supply share reveal disclose"
)
_ABLE = any_of(
    "found recall remember heard access sure certain aware familiar able see assist help comment predict guess speculate"
    " generate perform"
)
_TOLD = any_of(
    "available known provided specified mentioned stated disclosed documented confirmed found listed detailed recorded determined"
    " identified verified supplied established answered accessible calculated given announced named"
)
FACTS = any_of("information info data details? context answer sources? documentation")
_MEANS = any_of("access knowledge idea clue abilit(?:y|ies) capabilit(?:y|ies) memory record")
_INCLUDE = any_of("specify provide mention include contain lead say state match")
_AUXILIARY = any_of("do did can ca could would will wo am are was were have")
_NOT = rf"(?:(?: \w+)? {_AUXILIARY}(?: not|n't|nt)|'(?:m|re|ve|ll|d) not|(?: \w+)? cannot)"
_IS = any_of("is are was were")
_IS_NOT = rf"(?:{_IS}(?: not|n't)|ha(?:s|ve)(?: not|n't) been)"
_SOUGHT = any_of("confirmed verified identified determined referenced checked researched retrieved obtained consulted found")
_DOES_NOT = r"(?:do|does|did)(?: not|n't)"
_ABOUT = any_of(
    "is are was were about on of to for regarding available provided found here that in at given exists? concerning confirming"
    " such"
)
_FROM = any_of("in with from based at by here within without as because due")
_OPENLY = any_of("explicitly specifically directly clearly publicly officially readily widely definitively reliably")
UNKNOWN = any_of("unknown unclear uncertain undisclosed unavailable unspecified undocumented")
_ATTRIBUTE = any_of(
    "age year date day month time name title author artist composer identity origin cause location birthplace birth death number"
    " birthdate population height length weight size value price score result status winner"
)
HARD = any_of("impossible difficult hard")

TONGUES = {
    "German": (
        r"^(?:(?:das |es )?weiss ich|ich weiss)(?: \w+){0,2} nichts?\b|^(?:ich habe |da habe ich )?(?:\w+ )?keine ahnung\b"
        r"|^(?:ich habe|es gibt|mir liegen|dazu liegen mir)(?: \w+){0,4} keine(?: \w+)? (?:information|angabe|daten|kenntnis)"
        r"|^(?:ich|das|es|diese frage) kann(?: \w+){0,6} (?:nicht|keine)(?: \w+){0,3}"
        r" (?:beantwort|sagen|find|bestimm|angeben|geben|antwort|ermitte)|^ich (?:kenne|bin mir)(?: \w+){0,4} nicht\b",
        "unbekannt|nicht bekannt|unklar|weiss nicht|keine angaben?",
    ),
    "French": (
        r"^(?:je|nous) (?:n'en |ne |n')?(?:\w+ )?(?:sais|savons|connais|trouve|dispose)(?: \w+)? (?:pas|rien)\b|^j'ignore\b"
        r"|^je (?:n'ai|ne dispose)(?: \w+)? (?:aucune?|pas)(?: \w+)?(?: d'| de l'| )(?:id[ée]e|information|acc[èe]s|connaissance)"
        r"|^je ne (?:peux|puis|pourrais|suis)(?: \w+)? pas\b.{0,40}?"
        r" (?:r[ée]pondre|dire|trouver|d[ée]terminer|fournir|donner|s[ûu]re?)\b"
        r"|^(?:il est )?impossible (?:de|à)(?: \w+)? (?:r[ée]pondre|dire|d[ée]terminer|savoir)\b"
        r"|^(?:aucune|pas d'|il n'y a pas (?:assez )?d') ?(?:id[ée]e|information)",
        "inconnue?s?|non (?:connu|sp[ée]cifi[ée]|disponible)e?|ind[ée]termin[ée]e?|je sais pas|on ne sait pas",
    ),
    "Spanish": (
        r"^(?:yo )?no (?:lo )?sé\b|^(?:lo )?desconozco\b|^ni idea\b|^no (?:conozco|encuentro|encontré|recuerdo|estoy segur[oa])\b"
        r"|^no (?:tengo|dispongo de|cuento con|hay)(?: \w+){0,3} (?:informaci[óo]n|datos|idea|acceso|conocimiento)"
        r"|^no (?:puedo|podr[íi]a|pude|es posible)(?: \w+){0,3}"
        r" (?:responder|contestar|decir|encontrar|determinar|dar|proporcionar)",
        "desconocid[oa]s?|se desconoce|no se sabe|indeterminad[oa]|no disponible|no especificad[oa]|sin informaci[óo]n",
    ),
    "Portuguese": (
        r"^(?:eu )?não (?:o )?sei\b|^desconheço\b|^(?:eu )?não (?:encontrei|conheço|me lembro|lembro|faço ideia|consegui)\b"
        r"|^(?:eu )?não (?:tenho|possuo|disponho de|há)(?: \w+){0,3} (?:informaç|dados|ideia|acesso|conhecimento|certeza)"
        r"|^(?:eu )?não (?:posso|consigo|é possível)(?: \w+){0,3} (?:responder|dizer|encontrar|determinar|dar|fornecer|informar)",
        "desconhecid[oa]s?|não se sabe|indeterminad[oa]|não disponível|não informad[oa]|sem ideia|sem informaç(?:ão|ões)",
    ),
    "Italian": (
        r"^(?:io )?non (?:lo |ne )?so\b|^non (?:conosco|ricordo|sono (?:sicur[oa]|certo|certa))\b|^nessuna idea\b"
        r"|^non (?:ne )?(?:ho|dispongo di|ci sono)(?: \w+){0,3} (?:idea|informazion|dati|accesso|conoscenz)"
        r"|^non (?:posso|riesco a|sono in grado di)(?: \w+){0,2} (?:rispond|dir|trovar|determinar|fornir|dare)",
        "sconosciut[oaie]|ignot[oaie]|non si sa|non not[oa]|non disponibile|indeterminat[oa]|boh",
    ),
    "Dutch": (
        r"^(?:(?:dat |het )?weet ik|ik weet|ik ken)(?: \w+){0,3} niet\b"
        r"|^(?:ik heb |er is )?(?:\w+ )?geen (?:idee|informatie|gegevens)\b"
        r"|^(?:ik|dat|deze vraag) kan(?: \w+){0,6} (?:niet|geen)(?: \w+){0,3}"
        r" (?:beantwoord|zeggen|vinden|geven|bepalen|antwoord)",
        "onbekend|niet bekend|onduidelijk|weet niet",
    ),
    "Swedish": (
        r"^(?:(?:det )?vet jag|jag vet|jag känner)(?: \w+){0,2} (?:inte|ej)\b"
        r"|^(?:jag har |det finns )?ingen (?:\w+ )?(?:aning|information)"
        r"|^(?:jag|det) kan(?: \w+){0,3} (?:inte|ej)(?: \w+){0,3} (?:svara|säga|hitta|ange|avgöra|besvara)",
        "okän(?:d|t|da)|inte känt|oklart|vet (?:inte|ej)",
    ),
    "Polish": (
        r"^(?:ja )?(?:tego )?nie (?:wiem|znam|pamiętam|znalazł[ae]m|jestem pew(?:ien|na))\b"
        r"|^(?:nie ma|brak)(?: \w+)? (?:informacji|danych)"
        r"|^nie mam(?: \w+){0,3} (?:pojęcia|informacji|danych|dostępu|wiedzy)"
        r"|^nie (?:mogę|potrafię|umiem|jestem w stanie)(?: \w+){0,4}"
        r" (?:odpowiedzieć|powiedzieć|znaleźć|określić|podać|udzielić|ustalić)",
        "nieznan[yae]|nie wiadomo|nieokreślon[yae]",
    ),
    "Turkish": (
        r"\b(?:bilmiyor(?:um|uz)|bilemiyorum|hatırlamıyorum|bulamadım|emin değilim"
        r"|(?:cevaplaya|yanıtlaya|söyleye|vere)m(?:[ea]m|iyorum|ıyorum))$"
        r"|\b(?:bilgi|bilgim|bilgiye erişimim|fikrim)(?: \w+)? (?:yok|yoktur|bulunmuyor|bulunmamaktadır|mevcut değil)$",
        "bilinmiyor|bilinmemektedir|bilinmeyen|belirsiz",
    ),
    "Russian": (
        r"^(?:я )?(?:\w+ )?не (?:знаю|помню|уверена?)\b|^(?:я )?понятия не имею\b|^мне (?:\w+ )?не ?известно\b"
        r"|^(?:у меня )?(?:нет|недостаточно)(?: \w+){0,3} (?:информации|данных|сведений|доступа|ответа)\b"
        r"|^(?:я )?не (?:могу|смогу|смогла?|удалось)(?: \w+){0,4}"
        r" (?:ответить|сказать|найти|определить|предоставить|назвать|дать)\b",
        "неизвестн(?:о|а|ы|ый|ая|ое)|не известно|неясно|без понятия",
    ),
    "Chinese": (
        "不知道(?!的)|不清楚|不(?:太)?(?:确定|確定)|不了解|不晓得|不曉得|(?:查|找)不到|未找到|没听说过|沒聽說過|不记得|不記得"
        "|(?:无法|無法|不能)(?:直接|准确|準確|给出|給出|确切|確切)*(?:确定|確定|回答|提供|核实|得知|判断|判斷|查到|找到|确认|確認|答案|告诉|告訴)"
        "|(?:没|沒)有(?:关于|關於)?.{0,20}?(?:信息|资料|資料|数据|資訊|數據|答案)",
        "未知|不明|不详|不詳|未详|未詳|不得而知",
    ),
    "Japanese": (
        "(?:わか|分か)り(?:ません|かねます)|(?:わか|分か)ら(?:ない|ん)(?!い)|知りません|存じません|知らない(?:です|よ)?$|不明です"
        "|(?:答|回答|お答え).{0,4}?(?:でき|られ)ません|情報(?:が|は|を).{0,8}?(?:ありません|いません|できません)|見つかりません",
        "不明|未詳|知らん|わかんない",
    ),
    "Korean": (
        "모르겠|모릅니다|몰라요|모른다|알 수 (?:가 )?없|알지 못|찾을 수 없|확인할 수 없|답(?:변|을|변을)? ?(?:할|드릴) 수 없"
        "|정보(?:가|는|를)? ?(?:없|부족|찾을 수 없|가지고 있지 않|제공할 수 없)",
        "미상|불명|모름|몰라|불확실|알려지지 않음",
    ),
    "Arabic": (
        r"^(?:أنا )?لا (?:أعرف|أعلم|أدري|أتذكر)\b|^ليست? (?:لدي|عندي)(?: \w+){0,2} (?:معلومات|فكرة|إجابة|علم)"
        r"|^(?:أنا )?لا (?:أستطيع|يمكنني|يمكن)(?: \w+)? (?:الإجابة|الرد|تحديد|القول|العثور|تقديم|معرفة)"
        r"|^لا (?:أملك|توجد|تتوفر|يوجد)(?: \w+){0,2} معلومات",
        "مجهولة?|غير (?:معروفة?|محددة?|متوفرة?|متاحة?)",
    ),
    "Hindi": (
        "^मुझे .{0,60}?(?:नहीं (?:पता|मालूम)|(?:पता|मालूम|जानकारी|याद) नहीं)|^मैं .{0,60}?नहीं (?:जानता|जानती|जानते|.{2,8} सक)"
        "|^(?:मेरे पास |इस बारे में ).{0,60}?(?:जानकारी|सूचना|उत्तर|जवाब|डेटा) .{0,6}?नहीं",
        "अज्ञात|पता नहीं|मालूम नहीं|नहीं पता|ज्ञात नहीं",
    ),
    "Vietnamese": (
        r"^(?:(?:tôi|mình|em|chúng tôi) (?:\w+ )?)?(?:không|chưa|chẳng) (?:biết|rõ|chắc|nhớ|tìm thấy(?: \w+)? thông tin"
        r"|có(?: \w+){0,2} (?:thông tin|dữ liệu|câu trả lời)|thể(?: \w+){0,2} (?:trả lời|xác định|cung cấp|tìm|cho biết|nói))\b",
        "không xác định|chưa xác định",
    ),
    "Indonesian": (
        r"^(?:(?:saya|aku|kami) (?:\w+ )?)?(?:tidak|tak|belum) (?:tahu|mengetahui|yakin|ingat"
        r"|(?:ada|punya|memiliki)(?: \w+){0,2} (?:informasi|data|akses)"
        r"|(?:dapat|bisa|mampu)(?: \w+)? (?:menjawab|menemukan|memberi|menentukan|mengatakan|memastikan|dipastikan"
        r"|ditentukan))",
        "(?:tidak|belum) (?:diketahui|jelas|tersedia)|entahlah|tak diketahui",
    ),
    "Thai": (
        "ไม่ทราบ|ไม่รู้(?!จัก)|ไม่แน่ใจ|ไม่(?:มี|พบ)(?:ข้อมูล|คำตอบ)|ไม่สามารถ(?:ตอบ|ระบุ|ให้|บอก|ค้นหา|หา|ยืนยัน)",
        "ไม่ปรากฏ|ไม่ระบุ",
    ),
}
"""In other tongues: what a clause that declines opens with, or has in it where verbs come last or words are not parted; and what
declines where it is the whole clause."""


def _in_tongue(tongue: tuple[str, str]) -> str:
    """One pattern of the two, in the characters that answers are folded to."""
    return unicodedata.normalize("NFKC", f"{tongue[0]}|^(?:{tongue[1]})$")


COUNSEL = (
    rf"^(?:this|that|it|the)\b.{{0,200}} (?:needs? to|should|must) be (?:\w+ly )?(?:{_SOUGHT}|looked up)(?! by\b)",
    r"^(?:you (?:will |would |may |might )?(?:need|have) to|you (?:should|can|could|may)|please) "
    r"(?:search|consult|refer|check|specify|provide|research|conduct|look|find (?:this|that) information)\b",
)
"""What sends the asker elsewhere: no answer, save where the question asks for advice."""

PATTERNS = (
    # I do not know, cannot find or tell, lack what it would take.
    rf"^(?:i|we){_NOT}(?: {_WORD}){{0,3}} (?:{_TELL}|{_ABLE})\b",
    rf"^(?:i|we){_NOT} (?:have|possess)(?: {_WORD}){{0,5}} (?:{FACTS}|{_MEANS})\b",
    r"^(?:i|we)(?:'ve| have) never heard of\b|^i dunno\b",
    rf"^(?:i|we)(?:'d| would| must)?(?: \w+)? (?:refuse to|decline to|prefer not to|rather not|have to decline to) {_TELL}\b",
    r"^(?:i|we)(?:'m| am|'re| are| was| were)?(?: \w+)? (?:unable|unaware|unfamiliar|unsure|uncertain)\b",
    rf"^(?:i|we)(?:(?: \w+)? have|'ve) (?:\w+ly )?(?:no|little|not enough|insufficient) (?:\w+ )?(?:{FACTS}|{_MEANS})\b",
    rf"^(?:i|we)(?: \w+)? lack (?:{_WORD} ){{0,3}}(?:{FACTS}|{_MEANS})\b",
    rf"^(?:i|we)(?:'d| would| will)? (?:need|require) (?:more|further|additional|specific) (?:{_WORD} )?{FACTS}\b",
    r"^(?:i|we)(?:'d| would) (?:first )?need to know\b",
    r"\b(?:outside|beyond)(?: of)? (?:my|our) (?:\w+ ){0,2}(?:knowledge|expertise|training|scope|abilit|capabilit)",
    r"^(?:don't|dont|do not|can't|cannot|can not|couldn't|could not|not able to|not possible to|impossible to|unable to|hard to"
    rf"|difficult to) (?:\w+ly )?{_TELL}\b",
    # Nothing is there to tell from.
    rf"\b{FACTS}\b.{{0,200}}? (?:{_IS_NOT}|{_IS} un)(?: ?\w+){{0,2}} ?{_TOLD}\b",
    rf"\b{FACTS}\b.{{0,120}}? (?:insufficient|missing|{_DOES_NOT} {_INCLUDE})\b",
    rf"\b(?:text|passage|question|context)\b.{{0,60}}? {_DOES_NOT} {_INCLUDE}\b|^it {_DOES_NOT} {_INCLUDE} (?:\w+ )?{FACTS}\b",
    r"^(?:the|this|your) (?:question|query|prompt)(?: itself)? (?:is|seems|appears)(?: to be)? (?:\w+ly |too )?"
    r"(?:incomplete|not (?:complete|clear|specific|answerable)|unanswerable|unclear|ambiguous|vague|missing)\b",
    rf"\bmak(?:es|ing) it (?:\w+ly )?(?:{HARD}|not possible)(?: for me)? to (?:\w+ly )?{_TELL}\b",
    rf"(?:\b(?:(?<!or )no|not enough|insufficient|lacks|lack of)|n't enough)(?: \w+){{0,3}} {FACTS}(?<!source)(?<!sources)"
    rf"(?:$| {_ABOUT}\b)",
    rf"\b(?:{FACTS}|research|verification) (?:is |are )?(?:needed|required)\b|\brequires (?:\w+ )?(?:research|verification)\b",
    r"\b(?:insufficient|not enough|no (?:clear|sufficient)) evidence\b",
    rf"^no (?:\w+ ){{1,4}}{_TOLD}$",
    rf"^no (?:specific|exact|precise|definitive) (?:\w+ ){{1,4}}{_TOLD}\b",
    rf"^there(?: is|'s| are) no (?:specific|exact|precise|definitive|official|reliable) (?:\w+ ){{1,6}}{_TOLD}\b",
    rf"\b(?:more|further|additional|specific) (?:\w+ )?(?:{FACTS}|research|verification|clarification)\b.{{0,80}}? "
    r"(?:needed|required|necessary)\b",
    rf"\b(?:exact|specific|precise|actual)\b.{{0,250}}? {_IS_NOT}(?: \w+){{0,2}} {_TOLD}\b",
    rf"\b(?:cannot|can't|can not|could not|couldn't)(?: \w+)? be (?:\w+ly )?{_TOLD}\b",
    rf"\b{_IS_NOT} (?:\w+ly )?(?:provided|specified|stated|disclosed|available|known)(?:$| to me\b| {_FROM}\b)",
    rf"\b{_IS_NOT} {_OPENLY} {_TOLD}\b",
    r"\bnot (?:\w+ly )?(?:mentioned|given|stated) in (?:the |this )?(?:question|provided|given|available|text|context|passage)\b",
    rf"^(?:\w+ ){{0,2}}(?:not (?:\w+ly )?{_TOLD}|unavailable)(?:$| {_FROM}\b)",
    rf"^(?:unsure|{UNKNOWN}) {_FROM}\b|^(?:{_WORD} ){{0,3}}{_ATTRIBUTE}(?: of [\w' ]{{1,40}}?)? {UNKNOWN}(?:$| {_FROM}\b)",
    r"\b(?:will|would) be (?:provided|given|inserted)\b(?! to)",
    rf"^there(?: is|'s) no way (?:to|of) (?:{_TELL}|knowing|telling)\b",
    rf"\bit(?: is|'s) (?:not (?:\w+ly )?(?:possible|clear|known|specified|stated|mentioned)|{HARD}|unclear|unknown)"
    rf"(?:$| (?:for me )?to (?:\w+ly )?{_TELL}\b| (?:who|what|when|where|which|how|whether|if)\b)",
    rf"\b(?:{_IS}|remains?) (?:\w+ly |still )?{UNKNOWN}(?:$| to me\b| {_FROM}\b)",
    r"^(?:the answer is )?(?:unknown|not known|unsure|not sure|no idea|no clue|no answer|n/a|unanswerable|undetermined|idk|dunno"
    r"|not applicable|unclear|uncertain|cannot answer|can't answer)$",
    r"^(?:nobody|no one|no-one)(?: \w+)? knows(?: for (?:sure|certain))?$",
    *COUNSEL,
    *map(_in_tongue, TONGUES.values()),
)
"""What ``default`` stands for in ``entropy.abstention_patterns``: regular expressions, searched in each clause of an answer, its
letters small, its quotes straight, without markup, apologies and what opens it ("Unfortunately,")."""
