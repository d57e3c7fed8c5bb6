"""Words for designed sentences: each beside words that share its sounds and not its function.

The lists were written for this package. Minimal pairs follow the neighbourhoods of Luce & Pisoni 1998, "Recognizing
spoken words: the neighborhood activation model" (one sound added, removed or changed); pseudowords obey English
phonotactics and are as near to words as the words are to each other. Morphemes are set against the same final sounds
within a stem, as in Plag, Homann & Kunter 2017, "Homophony and morphology: the acoustics of word-final S in English".
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# word -> words that differ from it in one or two sounds, and which together have all of its sounds
WORD_NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "cat": _words("cap cut bat tack"),
    "dog": _words("dock dig log god"),
    "book": _words("bull back cook hook"),
    "fish": _words("fin dish flash ship"),
    "house": _words("howl mouse hiss how"),
    "milk": _words("mill silk mist kill"),
    "bread": _words("bed dread breath broad"),
    "road": _words("wrote rude load door"),
    "name": _words("same nail numb main"),
    "night": _words("light nine note tiny"),
    "ship": _words("sheep shop chip shift"),
    "cup": _words("cub cap pup puck"),
    "seven": _words("heaven sever eleven session"),
    "water": _words("daughter wider walker waiter"),
    "money": _words("honey muddy many month"),
    "paper": _words("taper pepper paler vapor"),
    "letter": _words("better litter ladder lesson"),
    "window": _words("winter widow wonder minnow"),
    "music": _words("mystic muse using mimic"),
    "table": _words("cable taper tackle label"),
    "doctor": _words("docker daughter factor actor"),
    "garden": _words("harden guarded pardon carbon"),
    "summer": _words("hammer summit simmer supper"),
    "chicken": _words("kitchen thicken checking chick"),
}
# the same for sequences of sounds that are no words
PSEUDOWORD_NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "dap": _words("dab tap dip pad"),
    "tig": _words("tip dig tag gift"),
    "pook": _words("pool peak duke coop"),
    "nish": _words("nick wish mesh shin"),
    "gouse": _words("gown mouse goose house"),
    "kilm": _words("kill film calm milk"),
    "prad": _words("pram glad proud drab"),
    "nobe": _words("note robe knob bone"),
    "lafe": _words("late safe leaf fail"),
    "bime": _words("bite time beam mile"),
    "shig": _words("ship wig shack big"),
    "kug": _words("cup mug keg gut"),
    "neven": _words("never heaven even seventh"),
    "lawter": _words("daughter louder later lawyer"),
    "vunny": _words("funny money valley venue"),
    "daper": _words("paper dipper taper danger"),
    "vetter": _words("better vector vendor matter"),
    "pindow": _words("window pillow pander piano"),
    "nusic": _words("music nurse basic mystic"),
    "pable": _words("table paper pebble pale"),
    "moctor": _words("doctor motor actor monitor"),
    "narden": _words("garden harden warden margin"),
    "lummer": _words("summer drummer lumber limber"),
    "dicken": _words("chicken thicken picking dozen"),
}

# morpheme -> stratum (the sounds at the edge) -> (words with it, words whose stem has these sounds)
Contrast = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
MORPHEMES: dict[str, tuple[str, Contrast]] = {
    "plural -s": ("en", {
        "ks": (_words("blocks locks backs kicks bricks sticks necks decks socks books"),
               _words("fox tax wax mix fix index annex reflex suffix complex")),
        "ps": (_words("maps clips lips shops cups ropes jeeps"),
               _words("lapse eclipse collapse corpse glimpse ellipse relapse")),
        "ts": (_words("cats hats boats nets plates goats"), _words("quartz blitz waltz klutz ritz kibbutz")),
        "Vz": (_words("toes pies bees days keys trees boys shoes laws ties plays eyes"),
               _words("nose rose prize size breeze cheese phase maze cruise noise cause disguise")),
    }),
    "past -ed": ("en", {
        "st": (_words("kissed dressed pressed crossed danced fixed mixed noticed"),
               _words("list fist west nest frost coast chest feast")),
        "kt": (_words("baked looked picked kicked walked liked"),
               _words("fact strict district perfect object product")),
        "pt": (_words("stopped helped jumped hoped dropped"), _words("script concept abrupt prompt adept")),
        "nd": (_words("cleaned planned joined opened rained learned"), _words("hand land friend mind second pond")),
        "ld": (_words("filled pulled failed called killed"), _words("gold field child shield wild")),
        "Vd": (_words("played tried showed cried stayed carried"), _words("road side bread mood seed guide")),
    }),
    "-ing of verbs": ("en", {
        "ing": (_words("running eating sleeping reading walking jumping falling playing making looking helping driving "
                       "cooking laughing"),
                _words("evening ceiling morning pudding nothing something sterling herring darling sibling starling "
                       "duckling viking awning")),
    }),
    "-er who does": ("en", {
        "er": (_words("teacher singer driver baker painter worker player farmer runner leader speaker dancer helper "
                      "hunter"),
               _words("water paper number winter river summer dinner ladder tiger butter silver spider pepper hammer")),
    }),
    "-ly of adverbs": ("en", {
        "ly": (_words("quickly slowly sadly badly kindly loudly softly nearly clearly mostly partly nicely"),
               _words("family belly jelly bully valley lily holly rally folly trolley chili barley")),
    }),
    "plural -s (es)": ("es", {
        "os": (_words("gatos perros libros ojos barcos hijos"), _words("lejos menos carlos marcos cosmos pathos")),
        "as": (_words("casas mesas cartas puertas manzanas"), _words("atlas apenas mientras lucas caracas")),
        "es": (_words("flores calles hombres noches trenes coches"),
               _words("lunes martes jueves viernes antes entonces")),
    }),
    "infinitive (es)": ("es", {
        "ar": (_words("hablar cantar comprar caminar mirar trabajar"),
               _words("lugar collar hogar pilar altar paladar")),
        "er": (_words("comer beber vender correr aprender"), _words("mujer taller alfiler alquiler ayer")),
        "ir": (_words("vivir abrir escribir subir"), _words("elixir faquir tapir nadir")),
    }),
    "plural -i (it)": ("it", {
        "i": (_words("gatti libri ragazzi tavoli fiori denti piedi giorni treni vini"),
              _words("oggi ieri domani quasi tardi quindi crisi tesi avanti fuori")),
    }),
    "infinitive -are (it)": ("it", {
        "are": (_words("parlare cantare comprare lavorare guardare mangiare pagare nuotare ballare aspettare"),
                _words("mare altare cellulare affare popolare regolare militare solare polare particolare")),
    }),
    "infinitive -er (fr)": ("fr", {
        "e": (_words("parler chanter manger donner trouver marcher jouer regarder penser tomber travailler acheter"),
              _words("café bébé fusée musée soirée carré cliché idée armée poupée côté beauté")),
    }),
}  # fmt: skip

CONCEPT_LANGUAGES = ("en", "es", "fr", "it", "ru")
_CONCEPTS = """
number: one uno un uno один | two dos deux due два | three tres trois tre три | four cuatro quatre quattro четыре
number: five cinco cinq cinque пять | six seis six sei шесть | seven siete sept sette семь | eight ocho huit otto восемь
number: nine nueve neuf nove девять | ten diez dix dieci десять | twelve doce douze dodici двенадцать
number: twenty veinte vingt venti двадцать | thirty treinta trente trenta тридцать | hundred cien cent cento сто
day: monday lunes lundi lunedì понедельник | tuesday martes mardi martedì вторник
day: wednesday miércoles mercredi mercoledì среда | thursday jueves jeudi giovedì четверг
day: friday viernes vendredi venerdì пятница | saturday sábado samedi sabato суббота
day: sunday domingo dimanche domenica воскресенье
colour: red rojo rouge rosso красный | green verde vert verde зелёный | blue azul bleu blu синий
colour: yellow amarillo jaune giallo жёлтый | black negro noir nero чёрный | white blanco blanc bianco белый
colour: brown marrón brun marrone коричневый | grey gris gris grigio серый
family: mother madre mère madre мать | father padre père padre отец | brother hermano frère fratello брат
family: sister hermana soeur sorella сестра | son hijo fils figlio сын | daughter hija fille figlia дочь
family: uncle tío oncle zio дядя | aunt tía tante zia тётя | grandmother abuela mamie nonna бабушка
animal: dog perro chien cane собака | cat gato chat gatto кошка | horse caballo cheval cavallo лошадь
animal: cow vaca vache mucca корова | bird pájaro oiseau uccello птица | fish pez poisson pesce рыба
animal: mouse ratón souris topo мышь | sheep oveja mouton pecora овца | wolf lobo loup lupo волк
animal: bear oso ours orso медведь | chicken pollo poulet pollo курица
food: bread pan pain pane хлеб | milk leche lait latte молоко | cheese queso fromage formaggio сыр
food: apple manzana pomme mela яблоко | egg huevo oeuf uovo яйцо | meat carne viande carne мясо
food: butter mantequilla beurre burro масло | sugar azúcar sucre zucchero сахар | water agua eau acqua вода
food: salt sal sel sale соль | wine vino vin vino вино
body: hand mano main mano рука | head cabeza tête testa голова | eye ojo oeil occhio глаз
body: nose nariz nez naso нос | ear oreja oreille orecchio ухо | mouth boca bouche bocca рот
body: foot pie pied piede нога | heart corazón coeur cuore сердце | tooth diente dent dente зуб
other: house casa maison casa дом | book libro livre libro книга | street calle rue strada улица
other: table mesa table tavolo стол | door puerta porte porta дверь | window ventana fenêtre finestra окно
other: tree árbol arbre albero дерево | sun sol soleil sole солнце | rain lluvia pluie pioggia дождь
other: friend amigo ami amico друг | war guerra guerre guerra война | money dinero argent denaro деньги
other: work trabajo travail lavoro работа | letter carta lettre lettera письмо | song canción chanson canzone песня
other: city ciudad ville città город | church iglesia église chiesa церковь | knife cuchillo couteau coltello нож
"""
# (category, word in each of CONCEPT_LANGUAGES); the English word names the concept
CONCEPTS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (line.partition(":")[0], tuple(words.split()))
    for line in _CONCEPTS.strip().splitlines()
    for words in line.partition(":")[2].split("|")
)

# English words that are nouns and verbs, and sound the same as both
NOUN_VERBS = _words(
    "walk talk call play work help dance fight love look answer travel promise visit plan smile cook drink dream sleep "
    "jump drive swim laugh kiss study climb search wait cough guess shout"
)
