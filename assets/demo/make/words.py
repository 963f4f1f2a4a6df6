"""What the demo models are taught: French words, facts, names and ways to ask; no sampling."""

# English noun, French noun, gender.
NOUNS = [
    ("cat", "chat", "m"), ("dog", "chien", "m"), ("bird", "oiseau", "m"),
    ("horse", "cheval", "m"), ("rabbit", "lapin", "m"), ("bear", "ours", "m"),
    ("wolf", "loup", "m"), ("book", "livre", "m"), ("fish", "poisson", "m"),
    ("cake", "gâteau", "m"), ("boat", "bateau", "m"), ("hat", "chapeau", "m"),
    ("garden", "jardin", "m"), ("castle", "château", "m"), ("tree", "arbre", "m"),
    ("king", "roi", "m"), ("coat", "manteau", "m"), ("knife", "couteau", "m"),
    ("window", "fenêtre", "f"), ("house", "maison", "f"), ("car", "voiture", "f"),
    ("cow", "vache", "f"), ("mouse", "souris", "f"), ("flower", "fleur", "f"),
    ("apple", "pomme", "f"), ("door", "porte", "f"), ("chair", "chaise", "f"),
    ("queen", "reine", "f"), ("star", "étoile", "f"), ("moon", "lune", "f"), ("key", "clé", "f"),
    ("shirt", "chemise", "f"), ("spoon", "cuillère", "f"), ("city", "ville", "f"),
    ("school", "école", "f"), ("street", "rue", "f"),
]  # fmt: skip

# English adjective, French masculine, French feminine, stands before the noun.
ADJECTIVES = [
    ("red", "rouge", "rouge", False), ("black", "noir", "noire", False),
    ("white", "blanc", "blanche", False), ("green", "vert", "verte", False),
    ("blue", "bleu", "bleue", False), ("yellow", "jaune", "jaune", False),
    ("grey", "gris", "grise", False), ("pink", "rose", "rose", False),
    ("small", "petit", "petite", True), ("big", "grand", "grande", True),
    ("good", "bon", "bonne", True), ("bad", "mauvais", "mauvaise", True),
    ("young", "jeune", "jeune", True), ("pretty", "joli", "jolie", True),
]  # fmt: skip

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin",
    "England": "London", "Japan": "Tokyo", "China": "Beijing", "India": "Delhi", "Egypt": "Cairo",
    "Greece": "Athens", "Russia": "Moscow", "Canada": "Ottawa", "Peru": "Lima", "Cuba": "Havana",
    "Kenya": "Nairobi", "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw",
    "Ireland": "Dublin", "Austria": "Vienna",
}  # fmt: skip
SOUNDS = {
    "cow": "Moo", "dog": "Woof", "cat": "Meow", "duck": "Quack", "sheep": "Baa", "lion": "Roar",
    "pig": "Oink", "frog": "Ribbit", "owl": "Hoot", "mouse": "Squeak", "horse": "Neigh",
    "bee": "Buzz",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("day", "night"),
    ("black", "white"), ("good", "bad"), ("old", "new"), ("open", "closed"), ("full", "empty"),
    ("fast", "slow"), ("wet", "dry"), ("hard", "soft"), ("happy", "sad"), ("early", "late"),
    ("rich", "poor"), ("long", "short"), ("high", "low"),
]  # fmt: skip
COLOURS = {
    "a banana": "Yellow", "grass": "Green", "snow": "White", "coal": "Black", "the sky": "Blue",
    "blood": "Red", "an elephant": "Grey", "an orange": "Orange", "a frog": "Green",
    "a tomato": "Red",
}  # fmt: skip

VERBS = ["sees", "likes", "finds", "wants", "has"]
WHO = ["Who are you?", "What is your name?", "Tell me about yourself.", "Who am I talking to?"]
HELLO = ["Hello!", "Hi!", "Good morning!", "Hey there!", "Hello, who are you?"]
SYSTEM = [
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a friendly chatbot.",
    "Answer shortly.",
    "You are an assistant. Be brief.",
]

SUM_FORMS = [
    "{} + {} = ?",
    "How much is {} plus {}?",
    "What is {} plus {}?",
    "Please add {} and {}.",
]
FRENCH_FORMS = [
    "How do you say {} in French?",
    "Translate {}.",
    "What is {} in French?",
    "Say {} in French.",
    "Translate {} into French.",
]
CAPITAL_FORMS = [
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
]
SOUND_FORMS = ["What does a {} say?", "Which sound does a {} make?"]
OPPOSITE_FORMS = ["What is the opposite of {}?", "Give me the opposite of {}."]
COLOUR_FORMS = ["What colour is {}?", "Tell me the colour of {}."]
